"""HTTP/1.1 on real sockets: no body is lost, whatever protocol the client offers."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from samserve_gateway.protocol import MAX_HEAD_BYTES, MAX_TARGET_BYTES
from tests.support.clients import JAVA_CLIENT, curl, java
from tests.support.http import serving

BODY = b'{"bbox": [1, 2, 3, 4]}' + b" " * 200_000  # more than one read of a socket

OFFERS = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    "TLS": b"Connection: Upgrade\r\nUpgrade: TLS/1.2\r\n",
    "websocket": b"Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n",
    "several": b"connection: upgrade\r\nupgrade: h2c, IRC/6.9\r\nupgrade: foo\r\n",
    "unconnected": b"Upgrade: h2c\r\n",
    "none": b"",
}


class Echo:
    """Answers with the size of the body. `/wait` never answers; it records that the client left."""

    def __init__(self) -> None:
        self.hung_up = threading.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return
        request = Request(scope, receive)
        body = await request.body()
        if scope["path"] == "/wait":
            assert (await receive())["type"] == "http.disconnect"
            self.hung_up.set()
            return
        said = {"method": scope["method"], "bytes": len(body), "same": body == BODY}
        await JSONResponse(said)(scope, receive, send)


class Served:
    def __init__(self, echo: Echo, port: int) -> None:
        self.echo = echo
        self.port = port

    def connect(self) -> socket.socket:
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    echo = Echo()
    with serving(echo) as port:
        yield Served(echo, port)


def head(offer: bytes = b"", *, method: bytes = b"POST", framing: bytes | None = None) -> bytes:
    if framing is None:
        framing = b"Content-Length: %d\r\n" % len(BODY) if method == b"POST" else b""
    return method + b" / HTTP/1.1\r\nHost: localhost\r\n" + offer + framing + b"\r\n"


def chunked(body: bytes, size: int) -> bytes:
    parts = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def answer(connection: socket.socket, method: str = "POST") -> tuple[int, Any]:
    response = HTTPResponse(connection, method=method)
    response.begin()
    return response.status, json.loads(response.read())


READ = (200, {"method": "POST", "bytes": len(BODY), "same": True})


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_a_body_is_read_whatever_is_offered(served: Served, offer: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(head(offer) + BODY)  # together
        assert answer(connection) == READ
        connection.sendall(head(offer))  # the second on its connection, in two packets
        time.sleep(0.05)
        connection.sendall(BODY)
        assert answer(connection) == READ
        connection.sendall(head(offer, framing=b"Transfer-Encoding: chunked\r\n"))
        connection.sendall(chunked(BODY, 60_000))
        assert answer(connection) == READ
        connection.sendall(head(offer, method=b"GET"))
        assert answer(connection)[0] == 200


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_a_client_that_waits_to_be_told_to_go_on(served: Served, offer: bytes) -> None:
    with served.connect() as connection:
        connection.sendall(head(offer + b"Expect: 100-continue\r\n"))
        told = b""
        while not told.endswith(b"\r\n\r\n"):
            told += connection.recv(1)
        assert told.startswith(b"HTTP/1.1 100 ")
        connection.sendall(BODY)
        assert answer(connection) == READ


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_a_second_request_that_does_not_wait(served: Served, offer: bytes) -> None:
    with served.connect() as connection:
        threading.Thread(target=connection.sendall, args=[(head(offer) + BODY) * 3]).start()
        received = b""
        while received.count(b'"same":true') < 3:
            part = connection.recv(2**16)
            assert part, received
            received += part
        assert received.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("framing", [b"Content-Length: 9\r\n", b"Transfer-Encoding: chunked\r\n"])
def test_byte_by_byte(served: Served, framing: bytes) -> None:
    body = b"some text"
    sent = body if framing.startswith(b"Content") else chunked(body, 2)
    with served.connect() as connection:
        for byte in head(OFFERS["h2c"], framing=framing) + sent:
            connection.sendall(bytes([byte]))
        assert answer(connection)[1]["bytes"] == len(body)


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS.keys())
def test_who_hangs_up_is_noticed_before_the_answer(served: Served, offer: bytes) -> None:
    served.echo.hung_up.clear()
    with served.connect() as connection:
        connection.sendall(b"POST /wait HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n")
        connection.sendall(offer + b"\r\n{}")
        assert not served.echo.hung_up.wait(0.2)
    assert served.echo.hung_up.wait(20)


def test_an_offer_is_nothing_to_be_logged(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), served.connect() as connection:
        connection.sendall(head(OFFERS["h2c"] + OFFERS["websocket"]) + BODY)
        assert answer(connection) == READ
    assert caplog.messages == []


LONG = b"a" * (MAX_HEAD_BYTES + 1)

NOT_HTTP: dict[str, tuple[bytes, int]] = {
    "words": (b"how do you do\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 99, 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "HTTP/3": (b"GET / HTTP/3.0\r\n\r\n", 400),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "a header without a colon": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept\r\n\r\n", 400),
    "a header with NUL": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: a\0b\r\n\r\n", 400),
    "a header with ^A": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: a\x01b\r\n\r\n", 400),
    "a header with DEL": (b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Other: \x7f\r\n\r\n", 400),
    "a header with a lone CR": (b"GET / HTTP/1.1\r\nHost: localhost\r\nAccept: a\rb\r\n\r\n", 400),
    "an address with a space": (b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "an address beyond ASCII": ("GET /ä HTTP/1.1\r\nHost: localhost\r\n\r\n".encode(), 400),
    "two lengths": (head(framing=b"Content-Length: 1\r\nContent-Length: 2\r\n"), 400),
    "no length": (head(framing=b"Content-Length: many\r\n"), 400),
    "a negative length": (head(framing=b"Content-Length: -1\r\n"), 400),
    "another framing": (head(framing=b"Transfer-Encoding: gzip, chunked\r\n"), 400),
    "no chunk": (head(framing=b"Transfer-Encoding: chunked\r\n") + b"zz\r\nabc\r\n", 400),
    "a long header": (head(b"Cookie: " + LONG + b"\r\n"), 431),
    "many headers": (head(b"A: b\r\n" * 12_000), 431),
    "a long address": (b"GET /" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "a long query": (b"GET /?" + b"a" * MAX_TARGET_BYTES + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    "an endless first line": (b"GET /" + LONG, 431),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), NOT_HTTP.values(), ids=NOT_HTTP.keys())
def test_what_is_not_http_is_refused_in_the_one_shape(
    served: Served, sent: bytes, status: int
) -> None:
    with served.connect() as connection:
        connection.sendall(sent)
        said, body = answer(connection)
        assert said == status
        assert set(body["error"]) == {"code", "message", "field"}
        assert connection.recv(1) == b""  # closed


def test_a_long_head_is_refused_in_pieces_too(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(head(b"Cookie: " + LONG[:40_000] + b"\r\n")[:-2])
        time.sleep(0.1)
        connection.sendall(b"More: " + LONG[:40_000])
        assert answer(connection)[0] == 431


def test_what_follows_an_answer_and_is_not_http(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(head(OFFERS["h2c"]) + BODY + b"nonsense\r\n\r\n")
        received = b"".join(iter(lambda: connection.recv(2**16), b""))  # until it is closed
        assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"200", b"400"]
        assert b'"same":true' in received


def test_methods_without_a_body(served: Served) -> None:
    for method in ("GET", "HEAD", "OPTIONS", "DELETE", "TRACE", "BREW"):
        connection = HTTPConnection("127.0.0.1", served.port, timeout=30)
        connection.request(method, "/", headers={"Connection": "Upgrade", "Upgrade": "h2c"})
        response = connection.getresponse()
        assert response.status == 200
        assert (response.read() == b"") == (method == "HEAD")
        connection.close()


def test_javas_own_client(served: Served) -> None:
    """Java offers `h2c` with its first request, and sends the second on the same connection."""
    url = f"http://127.0.0.1:{served.port}/"
    for line in java(JAVA_CLIENT, url, BODY, "2").splitlines():
        status, said = line.split(" ", 1)
        assert (int(status), json.loads(said)) == READ


def test_curl_that_offers_http2(served: Served) -> None:
    url = f"http://127.0.0.1:{served.port}/"
    assert json.loads(curl(url, BODY, "--http2")) == READ[1]
    assert json.loads(curl(url, BODY, "--http2", "-H", "Transfer-Encoding: chunked")) == READ[1]
