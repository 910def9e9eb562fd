"""The number of connections is bounded, and a client that is too slow loses its connection."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from typing import Any

import pytest

from samserve_gateway import connections, protocol
from samserve_gateway.connections import Connections
from tests.support import torchserve
from tests.support.metrics import value_of
from tests.support.torchserve import Gateway, answer, cut
from tests.support.waiting import wait_for

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /sam/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gateway]:
    """A gateway whose times are a hundredth of the real ones."""
    monkeypatch.setattr(connections, "CHECK_INTERVAL_S", 0.02)
    for name in ("HEAD_TIMEOUT_S", "BODY_STALL_S", "BODY_WINDOW_S", "ANSWER_WINDOW_S"):
        monkeypatch.setattr(protocol, name, getattr(protocol, name) / 100)
    monkeypatch.setattr(protocol, "UNREAD_BODY_S", 0.2)
    monkeypatch.setattr(protocol, "LINGER_S", 0.2)
    with torchserve.gateway() as gateway:
        yield gateway


A, B, C = "192.0.2.1", "192.0.2.2", "192.0.2.3"


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=30)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def answer_on(connection: socket.socket, method: str = "GET") -> tuple[HTTPResponse, Any]:
    response = HTTPResponse(connection, method=method)
    response.begin()
    return response, json.loads(response.read())


def closed(gateway: Gateway, reason: str) -> float:
    """Return how many connections were closed for this reason."""
    name = "samserve_gateway_closed_connections_total"
    return value_of(gateway.metrics(), name, reason=reason)


def begin_post(connection: socket.socket) -> None:
    """Send a request whose body does not come, and wait until it is under way."""
    connection.sendall(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")


@pytest.mark.parametrize(
    ("most", "most_per_address", "says"), [(5, 100, "server has 5"), (100, 5, "address has 5")]
)
def test_one_connection_too_many_is_told_so(most: int, most_per_address: int, says: str) -> None:
    limits = {"max_connections": most, "max_connections_per_address": most_per_address}
    with torchserve.gateway(**limits) as gateway, contextlib.ExitStack() as opened:
        for _ in range(5):
            connection = opened.enter_context(connect(gateway.port))
            begin_post(connection)
        for request in (GET, POST + b"a" * 100):
            with connect(gateway.port) as another:
                another.sendall(request)
                response, body = answer_on(another)
                assert (response.status, body["error"]["code"]) == (503, "busy")
                assert says in body["error"]["message"]
                assert response.headers["Retry-After"]
                assert response.headers["X-Request-Id"]
                assert another.recv(1) == b""
        connection.sendall(b"{" * 100)  # those that are there are served
        assert answer_on(connection)[0].status == 400
        opened.close()
        wait_for(lambda: gateway.get("/healthz").status == 200)
        page = gateway.metrics()
        assert value_of(page, "samserve_gateway_connections") == 1
        count = "samserve_gateway_requests_total"
        assert value_of(page, count, route="other", status="503") >= 2


def test_beyond_twice_the_bound_there_is_not_even_an_answer() -> None:
    with torchserve.gateway(max_connections=3) as gateway, contextlib.ExitStack() as opened:
        connections = [opened.enter_context(connect(gateway.port)) for _ in range(3)]
        for connection in connections:
            begin_post(connection)
        for _ in range(3):
            opened.enter_context(connect(gateway.port))
        with connect(gateway.port) as another, contextlib.suppress(ConnectionError):
            another.sendall(GET)
            assert another.recv(1) == b""
        connections[0].sendall(b"{" * 100)
        assert answer_on(connections[0], "POST")[0].status == 400


def say_nothing(connection: socket.socket) -> None:
    """Do nothing."""


def begin_a_head(connection: socket.socket) -> None:
    connection.sendall(GET[:-2])


def be_answered(connection: socket.socket) -> None:
    connection.sendall(GET)
    assert answer_on(connection)[0].status == 200


def be_refused_before_the_body(connection: socket.socket) -> None:
    connection.sendall(POST.replace(b"/sam/", b"/nowhere"))
    assert answer_on(connection, "POST")[0].status == 404


@pytest.mark.parametrize(
    "occupy", [say_nothing, begin_a_head, be_answered, be_refused_before_the_body]
)
def test_who_only_waits_keeps_nobody_out(occupy: Callable[[socket.socket], None]) -> None:
    with torchserve.gateway(max_connections=5) as gateway, contextlib.ExitStack() as opened:
        with connect(gateway.port) as busy:
            begin_post(busy)
            waiting = [opened.enter_context(connect(gateway.port)) for _ in range(20)]
            for connection in waiting:
                with contextlib.suppress(ConnectionError):
                    occupy(connection)
            with connect(gateway.port) as another:
                be_answered(another)
            busy.sendall(b"{" * 100)
            assert answer_on(busy, "POST")[0].status == 400
        assert closed(gateway, "made_room") >= 16
        assert closed(gateway, "too_many") == 0


class Idle:
    """A connection whose client does nothing.

    Args:
        unread: bytes of answers that it has not taken.
    """

    def __init__(self, unread: int = 0) -> None:
        self.unread = unread

    def check(self, now: float) -> None:
        """Do nothing."""

    def unsent(self) -> int:
        return self.unread

    def abandon(self) -> None:
        self.unread = -1


def test_connections_are_forgotten() -> None:
    async def come_and_go() -> Connections:
        counted = Connections(3, 2)
        for _ in range(10):
            arrived = [(Idle(), address) for address in (A, A, A, B)]
            refusals = [counted.add(one, address) for one, address in arrived]
            assert [refusal is None for refusal in refusals] == [True, True, False, True]
            for one, _ in (*arrived, *arrived):
                counted.remove(one)
        return counted

    assert len(asyncio.run(come_and_go())) == 0


@pytest.mark.parametrize("sent", [b"G", GET[:-2], b"POST /sam/ HTTP/1.1\r\nA: b\r\n"])
def test_a_head_that_does_not_end(impatient: Gateway, sent: bytes) -> None:
    with connect(impatient.port) as connection:
        connection.sendall(sent)
        response, body = answer_on(connection)
        assert (response.status, body["error"]["code"]) == (408, "request_timeout")
        assert connection.recv(1) == b""
    with connect(impatient.port) as connection:  # the second of its connection
        connection.sendall(GET)
        assert answer_on(connection)[0].status == 200
        connection.sendall(sent)
        assert answer_on(connection)[0].status == 408
    page = impatient.metrics()
    assert value_of(page, "samserve_gateway_requests_total", route="other", status="408") == 2
    assert closed(impatient, "slow_head") == 2


def test_a_head_that_drips(impatient: Gateway) -> None:
    with connect(impatient.port) as connection, contextlib.suppress(ConnectionError):
        for byte in GET * 1000:
            connection.sendall(bytes([byte]))
            time.sleep(0.02)
            if byte == ord("/"):
                connection.sendall(b"a")
            if closed(impatient, "slow_head"):
                break
    assert closed(impatient, "slow_head") == 1


def test_an_idle_connection_is_kept(impatient: Gateway) -> None:
    with connect(impatient.port) as connection:
        for _ in range(3):
            connection.sendall(GET)
            assert answer_on(connection)[0].status == 200
            time.sleep(0.5)  # more than twice the time for a head


@pytest.mark.parametrize("framing", [b"Content-Length: 100", b"Transfer-Encoding: chunked"])
def test_a_body_that_stops(impatient: Gateway, framing: bytes) -> None:
    with connect(impatient.port) as connection:
        connection.sendall(POST.replace(b"Content-Length: 100", framing))
        response, body = answer_on(connection, "POST")
        assert (response.status, body["error"]["code"]) == (408, "request_timeout")
        assert "no byte" in body["error"]["message"]
        assert response.headers["X-Request-Id"]
    page = impatient.metrics()
    assert value_of(page, "samserve_gateway_requests_total", route="/sam/", status="408") == 1
    assert impatient.torchserve.received == []


def test_a_body_that_drips(impatient: Gateway) -> None:
    with connect(impatient.port) as connection:
        connection.sendall(POST.replace(b"100", b"100000"))
        stop = threading.Event()

        def drip() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.01):
                    connection.sendall(b"a")

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            response, body = answer_on(connection, "POST")
        finally:
            stop.set()
            thread.join()
        assert response.status == 408
        assert "bytes per second" in body["error"]["message"]


def test_a_body_whose_client_waits_to_be_told_to_go_on_is_not_slow(impatient: Gateway) -> None:
    with connect(impatient.port) as connection:
        connection.sendall(POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n"))
        told = b""
        while not told.endswith(b"\r\n\r\n"):
            told += connection.recv(1)
        assert told.startswith(b"HTTP/1.1 100 ")
        connection.sendall(b"{" * 100)
        assert answer_on(connection, "POST")[0].status == 400


def test_a_body_that_goes_on_after_its_answer(impatient: Gateway) -> None:
    with connect(impatient.port) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(POST.replace(b"/sam/", b"/nowhere"))
        assert answer_on(connection, "POST")[0].status == 404
        for _ in range(90):  # one byte less than were announced
            connection.sendall(b"a")
            time.sleep(0.02)
            if closed(impatient, "unread_body"):
                break
    assert closed(impatient, "unread_body") == 1


def test_an_answer_that_nobody_reads(impatient: Gateway) -> None:
    """The answer is larger than what the sockets hold, so the gateway keeps the rest."""
    impatient.torchserve.script("vit_t", answer(b"[" + b" " * 2**26 + b"]"))
    body = b'{"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}'
    with connect(impatient.port) as connection:
        connection.sendall(POST.replace(b"100", b"%d" % len(body)) + body)
        wait_for(lambda: closed(impatient, "slow_answer") == 1)
    assert impatient.get("/healthz").status == 200


@pytest.mark.parametrize(
    ("unread", "kept"),
    [
        ([0, 10, 90], [0, 10, 90]),
        ([0, 10, 91], [0, 10]),
        ([60, 50, 40, 30], [40, 30]),
        ([101], []),
        ([30] * 10, [30] * 3),
    ],
)
def test_whoever_has_most_of_too_many_answers_loses_the_connection(
    monkeypatch: pytest.MonkeyPatch, unread: list[int], kept: list[int]
) -> None:
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 100)
    monkeypatch.setattr(connections, "CHECK_INTERVAL_S", 0.01)
    ended: list[str] = []

    async def wait() -> list[int]:
        counted = Connections(100, 100, record_end=ended.append)
        idle = [Idle(size) for size in unread]
        for number, connection in enumerate(idle):
            counted.add(connection, str(number))
        await asyncio.sleep(0.1)
        for connection in idle:
            counted.remove(connection)
        return [connection.unread for connection in idle if connection.unread >= 0]

    assert asyncio.run(wait()) == kept
    assert set(ended) <= {"unsent_answers"}
    assert bool(ended) == (kept != unread)


def test_answers_that_nobody_reads_are_bounded_together(
    impatient: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MAX_UNSENT_BYTES", 2**26)
    monkeypatch.setattr(protocol, "ANSWER_WINDOW_S", 1000.0)
    body = b'{"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}'
    large = answer(b"[" + b" " * (3 * 2**24) + b"]")
    impatient.torchserve.script("vit_t", large, large)
    with connect(impatient.port) as first, connect(impatient.port) as second:
        for connection in (first, second):
            connection.sendall(POST.replace(b"100", b"%d" % len(body)) + body)
        wait_for(lambda: closed(impatient, "unsent_answers") == 1)
        assert closed(impatient, "slow_answer") == 0
    assert impatient.get("/healthz").status == 200


def test_an_answer_that_is_read_slowly_but_well(impatient: Gateway) -> None:
    impatient.torchserve.script("vit_t", answer(b"[" + b" " * 2**24 + b"]"))
    body = b'{"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}'
    with connect(impatient.port) as connection:
        connection.sendall(POST.replace(b"100", b"%d" % len(body)) + body)
        received, start = 0, time.monotonic()
        while received < 2**24:
            received += len(connection.recv(2**17))
            time.sleep(0.01)
        assert time.monotonic() - start > 2 * protocol.ANSWER_WINDOW_S
    assert closed(impatient, "slow_answer") == 0


@pytest.mark.parametrize("offer", [b"", b"Connection: Upgrade\r\nUpgrade: h2c\r\n"])
@pytest.mark.parametrize("path", [b"/sam/", b"/sam/automask/", b"/sam/automask/?stream=1"])
def test_what_follows_a_request_waits_for_its_answer(
    gateway: Gateway, path: bytes, offer: bytes
) -> None:
    end = threading.Event()
    lane = "vit_t-automask" if b"automask" in path else "vit_t"
    gateway.torchserve.script(lane, cut(end))
    body = b'{"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}'
    head = POST.replace(b"100", b"%d" % len(body)).replace(b"/sam/", path)
    try:
        with connect(gateway.port) as connection:
            connection.sendall(head.replace(b"\r\n\r\n", b"\r\n" + offer + b"\r\n") + body)
            wait_for(lambda: gateway.torchserve.received)
            connection.settimeout(0.5)
            with pytest.raises(TimeoutError):  # the sockets hold a few megabytes
                connection.sendall(b"A: " + b"a" * 100 * 2**20)
            assert gateway.get("/healthz").status == 200
    finally:
        end.set()
