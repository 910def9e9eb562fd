"""A web server with one file, which can be made to misbehave."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

CONTENT = bytes(range(256)) * 3000


@dataclass
class Address:
    """The file and the behaviour of the server, and the requests that it got.

    Attributes:
        etag: of the file; None if the answers have no ETag.
        tells_length: whether the answers have a Content-Length.
        moved_to: the address to which `…/moved` redirects.
        n_sent_before_hanging_up: bytes after which the server closes the connection.
        n_sent_before_waiting: bytes after which the server sends slowly until `go_on` is set.
        asked: the Range header of each request.
        headers: all headers of each request.
    """

    url: str = ""
    content: bytes = CONTENT
    status: int = 200
    ranges: bool = True
    etag: str | None = None
    tells_length: bool = True
    moved_to: str = "/file"
    n_sent_before_hanging_up: int | None = None
    n_sent_before_waiting: int | None = None
    go_on: threading.Event = field(default_factory=threading.Event)
    asked: list[str | None] = field(default_factory=list)
    headers: list[Message] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        range_header = request.headers["Range"]
        self.asked.append(range_header)
        self.headers.append(request.headers)
        if request.headers["If-Range"] not in (None, self.etag):
            range_header = None
        start = 0
        if range_header:
            start = int(range_header.removeprefix("bytes=").removesuffix("-"))
        start = start if self.ranges else 0
        if self.status != 200:
            request.send_error(self.status)
            return
        if start > len(self.content):
            request.send_error(416)
            return
        if request.path.endswith("/moved"):
            request.send_response(302)
            request.send_header("Location", self.moved_to)
            request.end_headers()
            return
        request.send_response(206 if start else 200)
        if self.tells_length:
            request.send_header("Content-Length", str(len(self.content) - start))
        if self.etag is not None:
            request.send_header("ETag", self.etag)
        if start:
            total = len(self.content)
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        request.end_headers()
        if self.n_sent_before_waiting is not None:
            request.wfile.write(self.content[start : self.n_sent_before_waiting])
            start = self.n_sent_before_waiting
            while not self.go_on.wait(0.05):
                request.wfile.write(self.content[start : start + 1000])
                start += 1000
        request.wfile.write(self.content[start : self.n_sent_before_hanging_up])


@contextmanager
def serving() -> Iterator[Address]:
    """Run the server on this machine within the block, and yield its address."""
    address = Address()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with suppress(ConnectionError):  # the client may disconnect
                address.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        address.url = f"http://127.0.0.1:{server.server_port}/file"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield address
        finally:
            address.go_on.set()
            server.shutdown()
            thread.join()
