"""Requests as bytes, for what HTTP clients refuse to send, and the exchange of bytes itself."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterable

BOUNDARY = b"b" * 31
FORM = b"multipart/form-data; boundary=" + BOUNDARY
JSON = b"application/json"
HEAD = b"POST /sam/ HTTP/1.1\r\nHost: localhost\r\n"
CLOSE = b"Connection: close"


def post(
    body: bytes, content_type: bytes = JSON, *headers: bytes, path: bytes = b"/sam/"
) -> list[bytes]:
    """Return the pieces of a POST request."""
    lines = [b"Content-Type: " + content_type, b"Content-Length: %d" % len(body), *headers]
    head = HEAD.replace(b"/sam/", path)
    return [head, *(line + b"\r\n" for line in lines), b"\r\n", body]


def form(*parts: bytes, headers: Iterable[bytes] = ()) -> list[bytes]:
    """Return the pieces of a POST request with a form of these parts."""
    return post(b"".join([*parts, b"--%s--\r\n" % BOUNDARY]), FORM, *headers)


def part(name: bytes, content: bytes, *headers: bytes) -> bytes:
    """Return a part of a form."""
    lines = [b'Content-Disposition: form-data; name="%s"' % name, *headers]
    return b"--%s\r\n%s\r\n\r\n%s\r\n" % (BOUNDARY, b"\r\n".join(lines), content)


def exchange(
    connection: socket.socket,
    pieces: Iterable[bytes],
    is_whole: Callable[[bytearray], bool] = lambda received: False,
) -> bytes:
    """Send bytes while the answer is read, and return the answer.

    Args:
        is_whole: whether the answer is complete. Else it is read until the server hangs up.
    """

    def send_all() -> None:
        with contextlib.suppress(OSError):  # the server closes the connection
            for piece in pieces:
                connection.sendall(piece)

    sender = threading.Thread(target=send_all)
    sender.start()
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while not is_whole(received) and (data := connection.recv(2**20)):
            received += data
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)  # ends a send that nobody takes
    sender.join()
    return bytes(received)
