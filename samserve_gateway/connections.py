"""Counts the open connections, and looks at each of them again and again.

If there are as many as may be, a new one takes the place of one that has no request under way. So
connections that only wait keep nobody out: silent ones, idle ones, and those whose head drips.

uvicorn hands the state of the application to each connection (`protocol.py`). The gateway puts one
`Connections` into it, so that all connections of a server share it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from .addresses import client_at
from .crowds import Crowd
from .listening import OpenSockets

logger = logging.getLogger(__name__)

STATE = "connections"
"""The key of the `Connections` in the application's state."""

BUFFER_BYTES = 2**19
"""Most bytes that a connection reads at once."""

CHECK_INTERVAL_S = 2.0
"""Seconds between two looks at a connection. A timer for each request would cost more."""

MAX_UNSENT_BYTES = 2**28
"""Most bytes of answers that clients have not taken yet, of all clients together. Beyond it, the
client with the most loses its connection. Clients on a usual network need far less."""

REPORT_INTERVAL_S = 60.0
"""Shortest time between two log lines that connections are refused."""


class Watched(Protocol):
    """A connection that is looked at."""

    def check(self, now: float) -> None:
        """Close the connection if its client is too slow."""

    def unsent(self) -> int:
        """Return the bytes of answers that the client has not taken yet."""

    def abandon(self) -> None:
        """Close the connection, and drop what is unsent."""


class Connections:
    """The open connections of a server.

    Args:
        most: most connections.
        most_per_address: most connections from one address.
        record_refusal: counts and logs a request that is refused before it reaches the
            application. Its arguments are the answer's id, status, code and size.
        record_end: counts a connection that is closed against its client's will. Its argument is
            the reason: `slow_head`, `slow_answer`, `unread_body`, `unsent_answers`, `made_room` or
            `too_many`.
        sockets: the connections from `accept` on; None in a test without listening sockets.

    Attributes:
        buffer: where each connection in turn reads its bytes.
    """

    def __init__(
        self,
        most: int = 1000,
        most_per_address: int = 200,
        record_refusal: Callable[[str, int, str, int], None] = lambda *refusal: None,
        record_end: Callable[[str], None] = lambda reason: None,
        sockets: OpenSockets | None = None,
    ) -> None:
        self.most = most
        self.most_per_address = most_per_address
        self.record_refusal = record_refusal
        self.record_end = record_end
        self.sockets = sockets
        self.buffer = memoryview(bytearray(BUFFER_BYTES))
        self._open: dict[Watched, str] = {}
        self._of_address: Counter[str] = Counter()
        self._welcome: set[Watched] = set()  # without those that only get a refusal
        self._idle: Crowd[Watched] = Crowd()
        self._timer: asyncio.TimerHandle | None = None
        self._reported_s = float("-inf")

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Watched, address: str) -> str | None:
        """Count a connection. Return why it must be refused; None if it is welcome."""
        address = client_at(address)
        self._open[connection] = address
        self._of_address[address] += 1
        if self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(CHECK_INTERVAL_S, self._check)
        if self._of_address[address] > self.most_per_address:
            reason = (
                f"Your address has {self.most_per_address} connections, the limit for one address. "
                "Close some, or use them for several requests."
            )
        elif len(self._welcome) >= self.most and not self._make_room():
            reason = f"The server has {self.most} connections, its limit. Try again in a minute."
        else:
            self._welcome.add(connection)
            self._idle.add(connection, address)
            return None
        if time.monotonic() - self._reported_s > REPORT_INTERVAL_S:
            self._reported_s = time.monotonic()
            logger.warning("Connections are refused, the last one from %s. %s", address, reason)
        return reason

    def set_busy(self, connection: Watched, busy: bool) -> None:
        """Say whether a connection has a request under way."""
        if connection in self._welcome:
            change = self._idle.remove if busy else self._idle.add
            change(connection, self._open[connection])

    def are_far_too_many(self) -> bool:
        """Return whether there is no room even for connections that only get a refusal."""
        return len(self._open) > 2 * self.most

    def remove(self, connection: Watched) -> None:
        """Count a connection no longer."""
        address = self._open.pop(connection, None)
        if address is None:
            return
        self._welcome.discard(connection)
        self._idle.remove(connection, address)
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
        if not self._open and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _make_room(self) -> bool:
        """Close a connection that has no request under way. Return False if there is none."""
        for connection in self._idle.least_needed():
            if not connection.unsent():
                self.record_end("made_room")
                self.remove(connection)
                connection.abandon()
                return True
        return False

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(CHECK_INTERVAL_S, self._check)
        for connection in list(self._open):
            connection.check(loop.time())
        self._bound_unsent()

    def _bound_unsent(self) -> None:
        unsent = {connection: size for connection in self._open if (size := connection.unsent())}
        total = sum(unsent.values())
        for connection, size in sorted(unsent.items(), key=lambda pair: -pair[1]):
            if total <= MAX_UNSENT_BYTES:
                return
            total -= size
            self.record_end("unsent_answers")
            connection.abandon()
