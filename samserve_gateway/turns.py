"""The requests of one lane: which of them TorchServe has, which of them wait, and who is next."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

QUIET_S = 5.0
"""So long after the last prompt on a known picture, all workers may embed pictures."""

MAX_RECENT = 64
"""Pictures answered last. Workers still know them: they keep more."""


@dataclass(frozen=True, eq=False)
class Turn:
    """A request that waits for its turn or for its answer.

    Attributes:
        client: whose request it is.
        since: when it came, in `time.monotonic`'s seconds.
        picture: what tells its picture from others, if a worker may have to embed it; else None.
        begin: is done when the turn has come.
    """

    client: str
    since: float
    picture: Hashable | None
    begin: asyncio.Future[None]

    def has_come(self) -> bool:
        """Return whether the turn has come, and was not refused or cancelled before."""
        begin = self.begin
        return begin.done() and not begin.cancelled() and begin.exception() is None


class Turns:
    """Decides whose turn it is.

    Attributes:
        most_inside: requests that TorchServe gets at once.
        most_pictures: pictures among them that workers may have to embed. While somebody clicks on
            known pictures, it is one less, so that one of several workers is free for that.
        inside: requests that TorchServe has.
        waiting: requests that wait.
    """

    def __init__(self, most_inside: float, most_pictures: float) -> None:
        self.most_inside = most_inside
        self.most_pictures = most_pictures
        self.inside = 0
        self.waiting = 0
        self._inside_of: Counter[str] = Counter()
        self._pictures: dict[Hashable, Turn] = {}  # those that are being embedded
        self._recent: OrderedDict[Hashable, None] = OrderedDict()
        self._quiet_since = -math.inf
        self._waiting_of: OrderedDict[str, deque[Turn]] = OrderedDict()

    def may_begin(self, turn: Turn) -> bool:
        """Return whether TorchServe has a place for a request now."""
        if self.inside >= self.most_inside:
            return False
        return (
            not self._needs_embedding(turn)
            # Whoever sends the same picture meanwhile waits, and another worker need not embed it.
            or (
                turn.picture not in self._pictures
                and len(self._pictures) < self._most_pictures_now()
            )
        )

    def begin(self, turn: Turn) -> None:
        """Count a request as one that TorchServe has."""
        self.inside += 1
        self._inside_of[turn.client] += 1
        if self._needs_embedding(turn):
            self._pictures[turn.picture] = turn
        else:
            self._quiet_since = time.monotonic()

    def end(self, turn: Turn) -> None:
        """Count a request that had begun as answered."""
        self.inside -= 1
        self._inside_of[turn.client] -= 1
        if not self._inside_of[turn.client]:
            del self._inside_of[turn.client]
        if self._pictures.get(turn.picture) is turn:
            del self._pictures[turn.picture]
            self._recent[turn.picture] = None
            if len(self._recent) > MAX_RECENT:
                self._recent.popitem(last=False)

    def wait(self, turn: Turn) -> None:
        """Add a request to those that wait."""
        self._waiting_of.setdefault(turn.client, deque()).append(turn)
        self.waiting += 1

    def drop(self, turn: Turn) -> None:
        """Remove a request from those that wait, if it is one of them."""
        turns = self._waiting_of.get(turn.client, ())
        if turn in turns:
            self._remove(turn)

    def next(self) -> Turn | None:
        """Remove and return the first request that may begin; None if none may.

        Of the clients with the fewest requests inside, it is one of the client that was let in
        least recently.
        """
        if not self.waiting or self.inside >= self.most_inside:
            return None
        clients = sorted(self._waiting_of, key=lambda name: self._inside_of[name])
        turns = (turn for client in clients for turn in self._waiting_of[client])
        turn = next(filter(self.may_begin, turns), None)
        if turn is not None:
            self._waiting_of.move_to_end(turn.client)
            self._remove(turn)
        return turn

    def _needs_embedding(self, turn: Turn) -> bool:
        return turn.picture is not None and turn.picture not in self._recent

    def _most_pictures_now(self) -> float:
        quiet = time.monotonic() - self._quiet_since > QUIET_S
        return self.most_pictures if quiet else max(1, self.most_pictures - 1)

    def _remove(self, turn: Turn) -> None:
        turns = self._waiting_of[turn.client]
        turns.remove(turn)
        self.waiting -= 1
        if not turns:
            del self._waiting_of[turn.client]
