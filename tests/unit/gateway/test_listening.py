"""Connections are bounded from the moment at which they are accepted, before any TLS handshake."""

from __future__ import annotations

import contextlib
import gc
import socket
import ssl
import struct
import time
from asyncio import BaseTransport
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from weakref import WeakSet

import pytest

from samserve_gateway import listening, protocol
from samserve_gateway.listening import OpenSockets, listeners
from samserve_gateway.tls import Certificate
from samserve_launcher.loopback import LoopbackSession
from tests.support.waiting import wait_for
from tests.unit.gateway.test_tls import serving, write_certificate

SILENT = "127.0.0.2"
"""An address of this machine from which many connections come. Others come from 127.0.0.1."""


class Tls:
    """A gateway with TLS, whose connections are counted.

    Attributes:
        ended: the reasons for which connections were ended.
    """

    def __init__(self, counts: OpenSockets, port: int, certificate: Path) -> None:
        self.counts, self.port, self._certificate = counts, port, certificate
        self.ended: list[str] = []
        wait_for(lambda: len(counts) == 0)
        counts.record_end = self.ended.append

    def connect(self, address: str = SILENT) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), 30, (address, 0))

    def connect_whole(self, address: str = SILENT) -> ssl.SSLSocket:
        """Return a connection whose handshake has ended."""
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        return context.wrap_socket(self.connect(address))

    def health(self) -> int:
        with LoopbackSession(30, certificate=self._certificate) as http:
            return http.get(f"https://127.0.0.1:{self.port}/healthz").status_code


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def tls(tmp_path: Path, stack: ExitStack, monkeypatch: pytest.MonkeyPatch) -> Tls:
    monkeypatch.setattr(listening, "HANDSHAKE_TIMEOUT_S", 1.0)
    monkeypatch.setattr(listening, "CHECK_INTERVAL_S", 0.1)
    files = write_certificate(tmp_path, "name.example")
    counts = OpenSockets(100, 20, tls=True)
    limits = {"max_connections": 100, "max_connections_per_address": 20}
    port = stack.enter_context(serving(Certificate(*files), files, counts, **limits))
    return Tls(counts, port, files[0])


def is_closed(connection: socket.socket) -> bool:
    """Return whether the other side has closed the connection, or closes it within a second."""
    connection.settimeout(1)
    with contextlib.suppress(ConnectionError):
        try:
            return connection.recv(1) == b""
        except TimeoutError:
            return False
    return True


@pytest.mark.needs("openssl")
def test_silent_connections_of_one_address_are_few_and_end(tls: Tls, stack: ExitStack) -> None:
    silent = [stack.enter_context(tls.connect()) for _ in range(60)]
    wait_for(lambda: tls.ended.count("too_many") == 60 - 22)
    assert len(tls.counts) == 22  # the limit of an address, 20, and a tenth
    assert tls.health() == 200
    wait_for(lambda: tls.ended.count("slow_handshake") == 22)
    wait_for(lambda: len(tls.counts) == 0)
    assert all(is_closed(connection) for connection in silent)


@pytest.mark.needs("openssl")
def test_silent_connections_of_many_addresses_keep_nobody_out(tls: Tls, stack: ExitStack) -> None:
    own = stack.enter_context(tls.connect_whole())
    for number in range(3, 13):
        for _ in range(20):
            stack.enter_context(tls.connect(f"127.0.0.{number}"))
            assert len(tls.counts) <= 132  # the limit, 100, and a tenth, and a fifth of that
    wait_for(lambda: len(tls.counts) == 110)
    assert tls.health() == 200
    assert "slow_handshake" not in tls.ended
    assert "made_room" in tls.ended
    own.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert own.recv(100).startswith(b"HTTP/1.1 200")
    wait_for(lambda: len(tls.counts) == 1)


@pytest.mark.needs("openssl")
def test_idle_clients_with_handshakes_keep_nobody_out(tls: Tls, stack: ExitStack) -> None:
    for number in range(2, 12):
        for _ in range(11):
            stack.enter_context(tls.connect_whole(f"127.0.0.{number}"))
    assert tls.health() == 200
    assert "made_room" not in tls.ended  # `Connections` closed them


@pytest.mark.needs("openssl")
@pytest.mark.parametrize("begins_with", [b"\x16\x03\x01\x02\x00", b"\x16", b"\x00\x00"])
def test_a_handshake_of_slow_bytes_ends(tls: Tls, begins_with: bytes) -> None:
    with tls.connect() as connection, contextlib.suppress(ConnectionError):
        deadline = time.monotonic() + 60
        for byte in (begins_with + b"\x01" * 2000)[:2000]:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
            assert time.monotonic() < deadline
            if not len(tls.counts):
                break
    wait_for(lambda: len(tls.counts) == 0)


@pytest.mark.needs("openssl")
def test_an_idle_client_with_a_handshake_is_kept(tls: Tls) -> None:
    with tls.connect_whole() as connection:
        time.sleep(2)
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert tls.ended == []


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    "leave",
    [
        lambda connection: connection.close(),
        lambda connection: connection.sendall(b"GET / HTTP/1.1\r\n\r\n"),
        lambda connection: connection.shutdown(socket.SHUT_WR),
        lambda connection: connection.sendall(b"\x16\x03\x01\xff\xff" + b"x" * 999),
    ],
)
def test_whoever_leaves_is_counted_no_longer(
    tls: Tls, leave: Callable[[socket.socket], None]
) -> None:
    for _ in range(30):
        with tls.connect() as connection:
            leave(connection)
    wait_for(lambda: len(tls.counts) == 0)
    assert tls.health() == 200
    wait_for(lambda: not tls.counts._of_address and not tls.counts._shaking)


def reset(connection: socket.socket) -> None:
    """Close a connection so that the other side gets an error."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def leave_in_handshake(tls: Tls) -> None:
    tls.connect().close()


def reset_in_handshake(tls: Tls) -> None:
    connection = tls.connect()
    connection.sendall(b"\x16\x03\x01\x02\x00\x01")
    reset(connection)


def speak_plain_http(tls: Tls) -> None:
    with tls.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n\r\n")


def leave_without_a_request(tls: Tls) -> None:
    tls.connect_whole().close()


def leave_without_the_answer(tls: Tls) -> None:
    with tls.connect_whole() as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")


def leave_after_the_answer(tls: Tls) -> None:
    connection = tls.connect_whole()
    connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert connection.recv(12) == b"HTTP/1.1 200"
    reset(connection)


def send_no_http(tls: Tls) -> None:
    with tls.connect_whole() as connection:
        connection.sendall(b"\x00\x01\r\n\r\n")


class Memory:
    """The TLS connections whose memory is held. They are referred to weakly.

    Attributes:
        made: all connections until now.
    """

    def __init__(self) -> None:
        self.held: WeakSet[SSLProtocol] = WeakSet()
        self.made = 0


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """The connections in memory, while Python's collector does not come by chance."""
    memory = Memory()
    make = SSLProtocol.connection_made

    def connection_made(self: SSLProtocol, transport: BaseTransport) -> None:
        memory.held.add(self)
        memory.made += 1
        make(self, transport)

    monkeypatch.setattr(SSLProtocol, "connection_made", connection_made)
    gc.disable()
    yield memory
    gc.enable()


@pytest.mark.needs("openssl")
@pytest.mark.parametrize(
    "visit",
    [
        leave_in_handshake,
        reset_in_handshake,
        speak_plain_http,
        leave_without_a_request,
        leave_without_the_answer,
        leave_after_the_answer,
        send_no_http,
    ],
)
def test_ended_connections_leave_no_memory(
    tls: Tls,
    visit: Callable[[Tls], None],
    memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clients that come and go at once are never many, but each has had its 300 KB."""
    monkeypatch.setattr(listening, "FREE_AFTER", 5)
    monkeypatch.setattr(listening, "FREE_DELAY_S", 0.1)
    monkeypatch.setattr(protocol, "LINGER_S", 60)
    for _ in range(60):
        before = memory.made
        visit(tls)
        wait_for(lambda: memory.made > before)  # noqa: B023  it is called at once
        wait_for(lambda: len(tls.counts) == 0)
    wait_for(lambda: len(memory.held) < 20, 10)


def test_each_address_of_a_host_is_listened_on() -> None:
    counts = OpenSockets(10, 10, tls=False)
    sockets = listeners("localhost", 0, counts)
    families = {found[0] for found in socket.getaddrinfo("localhost", 0)}
    assert {bound.family for bound in sockets} == families
    for bound in sockets:
        bound.close()


def test_a_port_that_is_taken() -> None:
    counts = OpenSockets(10, 10, tls=False)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(OSError, match="in use"):
        listeners("127.0.0.1", taken.getsockname()[1], counts)
