"""The requests of one lane: which of them TorchServe has, which of them wait, and who is next."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar

K = TypeVar("K", bound=Hashable)

QUIET_S = 5.0
"""So long after the last prompt on a known picture, all workers may embed pictures."""


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
        self._pictures: Counter[Hashable] = Counter()
        self._quiet_since = -math.inf
        self._waiting_of: OrderedDict[str, deque[Turn]] = OrderedDict()

    def may_begin(self, turn: Turn) -> bool:
        """Return whether TorchServe has a place for a request now."""
        if self.inside >= self.most_inside:
            return False
        return (
            turn.picture is None
            or turn.picture in self._pictures  # it shares the embedding
            or len(self._pictures) < self._most_pictures_now()
        )

    def begin(self, turn: Turn) -> None:
        """Count a request as one that TorchServe has."""
        self.inside += 1
        self._inside_of[turn.client] += 1
        if turn.picture is None:
            self._quiet_since = time.monotonic()
        else:
            self._pictures[turn.picture] += 1

    def end(self, turn: Turn) -> None:
        """Count a request that had begun as answered."""
        self.inside -= 1
        _count_off(self._inside_of, turn.client)
        if turn.picture is not None:
            _count_off(self._pictures, turn.picture)

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

    def _most_pictures_now(self) -> float:
        quiet = time.monotonic() - self._quiet_since > QUIET_S
        return self.most_pictures if quiet else max(1, self.most_pictures - 1)

    def _remove(self, turn: Turn) -> None:
        turns = self._waiting_of[turn.client]
        turns.remove(turn)
        self.waiting -= 1
        if not turns:
            del self._waiting_of[turn.client]


def _count_off(counter: Counter[K], key: K) -> None:
    """Count one less. The counter holds only what is there."""
    counter[key] -= 1
    if not counter[key]:
        del counter[key]
