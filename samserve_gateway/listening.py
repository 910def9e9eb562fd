"""The sockets on which the gateway listens. They bound the connections before anything is read.

A TLS connection takes some 300 KB before its first request. Only after its handshake does it reach
`protocol.py`, which counts requests' connections and refuses those beyond the limits. So a client
that connects and sends nothing is counted here: the listening socket closes at once what is far
beyond the limits, and ends handshakes that take too long. If there is no room for a new connection,
it takes the place of a handshake that has not ended.

Many TLS connections leave their memory in a reference cycle when they end: an error, such as that
of a handshake, and the frame that raised it. Python's collector looks for cycles by the number of
objects, and these are few and large. So it is called here.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import socket
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from samserve.machine import give_memory_back

from .addresses import client_at
from .crowds import Crowd

HANDSHAKE_TIMEOUT_S = 10.0
"""Longest time for a TLS handshake."""

CHECK_INTERVAL_S = 1.0

FREE_AFTER = 100
"""After so many TLS connections have ended, their memory is freed: at most some 30 MB."""

FREE_DELAY_S = 0.2
"""Time from then until the memory is freed. More connections that end meanwhile cost nothing."""

BEYOND, BEYOND_TLS = 2.0, 1.1
"""Multiples of the limits. Connections up to here get an answer that says that they are too many.
Further ones are closed at once. A TLS connection gets its answer only after its handshake."""

SPARE = 0.2
"""A part of the limit: so many connections more are open for a moment, while the handshakes whose
places they took are being closed."""


class OpenSockets:
    """The connections of all listening sockets, from `accept` to `close`.

    Args:
        most, most_per_address: the limits of `Connections`. They get answers that say so, and
            what is far beyond them is closed without an answer.
        tls: whether each connection begins with a TLS handshake.

    Attributes:
        record_end: called with `too_many`, `slow_handshake` or `made_room` when a connection is
            ended.
    """

    def __init__(self, most: int, most_per_address: int, *, tls: bool) -> None:
        beyond = BEYOND_TLS if tls else BEYOND
        self._most = int(most * beyond)
        self._most_per_address = int(most_per_address * beyond)
        self._tls = tls
        self.record_end: Callable[[str], None] = lambda reason: None
        self._open = 0
        self._of_address: Counter[str] = Counter()
        self._shaking: dict[int, tuple[float, OpenSocket]] = {}  # since when
        self._crowd: Crowd[OpenSocket] = Crowd()  # the same, by address
        self._ended = 0

    def __len__(self) -> int:
        return self._open

    def admit(self, connection: OpenSocket) -> bool:
        """Count a new connection. Return False if there are too many already."""
        address = connection.client
        if self._of_address[address] >= self._most_per_address or not self._has_room():
            if not self._of_address[address]:
                del self._of_address[address]
            self.record_end("too_many")
            return False
        self._open += 1
        self._of_address[address] += 1
        if self._tls:
            self._shaking[connection.fileno()] = (time.monotonic(), connection)
            self._crowd.add(connection, address)
        return True

    def shaken(self, descriptor: int) -> None:
        """Say that the TLS handshake of a connection has ended."""
        _, connection = self._shaking.pop(descriptor, (0.0, None))
        if connection is not None:
            self._crowd.remove(connection, connection.client)

    def closed(self, connection: OpenSocket) -> None:
        """Count a connection no longer."""
        self.shaken(connection.fileno())
        address = connection.client
        self._open -= 1
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
        if self._tls:
            self._count_ended()

    async def end_slow_handshakes(self) -> None:
        """End handshakes that take too long, until this task is cancelled."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            too_old = time.monotonic() - HANDSHAKE_TIMEOUT_S
            for since, connection in list(self._shaking.values()):
                if since < too_old:
                    self._end_handshake(connection, "slow_handshake")

    def _has_room(self) -> bool:
        """Return whether there is room for one more, if need be after a handshake was ended."""
        if self._open < self._most:
            return True
        if self._open >= self._most * (1 + SPARE):
            return False
        least_needed = next(self._crowd.least_needed(), None)
        if least_needed is None:
            return False
        self._end_handshake(least_needed, "made_room")
        return True

    def _end_handshake(self, connection: OpenSocket, reason: str) -> None:
        self.shaken(connection.fileno())
        self.record_end(reason)
        # asyncio then reads an end of file, and closes the connection.
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)

    def _count_ended(self) -> None:
        self._ended += 1
        if self._ended == FREE_AFTER:
            asyncio.get_running_loop().call_later(FREE_DELAY_S, self._free)

    def _free(self) -> None:
        self._ended = 0
        gc.collect()
        # In a thread: for hundreds of megabytes it takes tens of milliseconds.
        asyncio.get_running_loop().run_in_executor(None, give_memory_back)


class OpenSocket(socket.socket):
    """A connection that says when it is closed.

    Attributes:
        client: whose connection it is.
    """

    client = ""
    on_close: Callable[[], None] | None = None

    def close(self) -> None:
        """Close the connection."""
        on_close, self.on_close = self.on_close, None
        if on_close is not None:
            on_close()
        super().close()


class Listener(socket.socket):
    """A listening socket whose connections are counted.

    Args:
        counts: where they are counted.
        arguments: those of `socket.socket`.
    """

    def __init__(self, counts: OpenSockets, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._counts = counts

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its address.

        Raises:
            ConnectionAbortedError: the next connection was one too many, and is closed. asyncio
                goes on when the next one comes.
        """
        accepted, address = super().accept()
        counts = self._counts
        connection = OpenSocket(
            accepted.family, accepted.type, accepted.proto, fileno=accepted.detach()
        )
        connection.client = client_at(str(address[0]))
        if not counts.admit(connection):
            connection.close()
            raise ConnectionAbortedError
        connection.on_close = lambda: counts.closed(connection)
        return connection, address


def listeners(host: str, port: int, counts: OpenSockets) -> list[socket.socket]:
    """Return a bound socket for each address of a host, as for both of `localhost`.

    Raises:
        OSError: the host has no address, or the port cannot be used.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = Listener(counts, family, kind, protocol)
            bound.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
    except OSError:
        for socket_of_another in bound:
            socket_of_another.close()
        raise
    return bound
