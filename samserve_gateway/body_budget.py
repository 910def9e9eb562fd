"""Bounds the memory that the bodies of all requests together take.

Each request has a share of the budget. The share grows while the body arrives, and ends with the
request. One client may hold half of the budget, so that it cannot keep all others out.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from samserve.errors import Busy
from samserve.machine import give_memory_back

from .settings import PREFIX

_SHARE = "samserve.share"
"""The key of a request's share in its ASGI scope."""

RETRY_AFTER_S = 1

MAX_DECOMPRESSING = 4
"""Most bodies that are decompressed at once. A few kilobytes may become as large as is allowed."""

TRIM_BYTES = 2**25
"""If the bodies have held this much memory, it goes back to the system when they have ended. Less
is kept for the next bodies, because new pages cost time."""

TRIM_DELAY_S = 1.0
"""Shortest time between two returns of memory to the system."""


class Share:
    """The part of the budget that one request holds.

    Attributes:
        parsing, decompressing: the budget's.
    """

    def __init__(self, budget: BodyBudget, client: str) -> None:
        self._budget = budget
        self._client = client
        self._held = 0
        self.parsing = budget.parsing
        self.decompressing = budget.decompressing

    def take(self, size: int) -> Busy | None:
        """Take bytes from the budget. Return the error if they are more than is left."""
        refusal = self._budget.take(self._client, size)
        if refusal is None:
            self._held += size
        return refusal

    def give_back(self) -> None:
        """Give all bytes of this share back to the budget."""
        self._budget.give_back(self._client, self._held)
        self._held = 0


class BodyBudget:
    """The number of bytes that the bodies of all requests may have together.

    Args:
        limit: the most bytes of all bodies.
        trim: returns free memory to the system.

    Attributes:
        parsing: held while a large body is parsed: one at a time, since parsing copies it.
        decompressing: held while a body is decompressed.
    """

    def __init__(self, limit: int, trim: Callable[[], None] | None = None) -> None:
        self.limit = limit
        self._of_clients: Counter[str] = Counter()
        self._held = 0
        self._highest = 0
        self._trim = _trim if trim is None else trim
        self._trimming = False
        self.parsing = asyncio.Semaphore(1)
        self.decompressing = asyncio.Semaphore(MAX_DECOMPRESSING)

    @property
    def held(self) -> int:
        """The bytes that all bodies have now."""
        return self._held

    def take(self, client: str, size: int) -> Busy | None:
        """Take bytes for a client. Return the error if they are more than are left."""
        if self._held + size > self.limit:
            return Busy(
                f"The bodies of all requests together have {self._held} bytes, of at most "
                f"{self.limit} ({PREFIX}BODIES_BYTES). Try again in {RETRY_AFTER_S} s.",
                RETRY_AFTER_S,
            )
        held = self._of_clients[client]
        if held + size > self.limit // 2:
            return Busy(
                f"The bodies of your requests together have {held} bytes, of at most "
                f"{self.limit // 2}, half of {PREFIX}BODIES_BYTES. Try again in {RETRY_AFTER_S} s, "
                "or send fewer at once.",
                RETRY_AFTER_S,
            )
        self._of_clients[client] += size
        self._held += size
        self._highest = max(self._highest, self._held)
        return None

    def give_back(self, client: str, size: int) -> None:
        """Give a client's bytes back."""
        self._held -= size
        self._of_clients[client] -= size
        if not self._of_clients[client]:
            del self._of_clients[client]
        self._consider_trim()

    def _consider_trim(self) -> None:
        """Return memory soon, if the bodies had much of it and have little now."""
        if self._trimming or self._highest < TRIM_BYTES or self._held > self._highest // 4:
            return
        self._trimming = True
        asyncio.get_running_loop().call_later(TRIM_DELAY_S, self._begin_trim)

    def _begin_trim(self) -> None:
        self._highest = self._held
        # In a thread: for a gigabyte it takes tens of milliseconds.
        done = asyncio.get_running_loop().run_in_executor(None, self._trim)
        done.add_done_callback(self._end_trim)

    def _end_trim(self, done: asyncio.Future[None]) -> None:
        self._trimming = False
        self._consider_trim()  # large bodies may have ended meanwhile


class WithShare:
    """An ASGI application that wraps another one, and gives each request its share.

    Args:
        client_of: returns the name under which a request's client is counted.
    """

    def __init__(self, app: ASGIApp, budget: BodyBudget, client_of: Callable[[Scope], str]) -> None:
        self._app = app
        self._budget = budget
        self._client_of = client_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and end its share with it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = Share(self._budget, self._client_of(scope))
        try:
            await self._app({**scope, _SHARE: share}, receive, send)
        finally:
            share.give_back()


def share_of(scope: Scope) -> Share:
    """Return a request's share of the budget."""
    share: Share = scope[_SHARE]
    return share


def _trim() -> None:
    """Return the memory of bodies that have ended to the system."""
    # An exception and the frame that raised it refer to each other, and the frame to the body.
    gc.collect()
    give_memory_back()
