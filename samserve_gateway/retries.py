"""Asking TorchServe, and once more where the question was lost.

A question is lost

- with its worker: TorchServe fails some of what an ending worker has in hand ("Worker died.");
- without a word: what an ending worker has taken from the queue but not begun, TorchServe 0.12
  forgets (`BatchAggregator`, interrupted between the two). So while prompts wait, their lane's
  workers are looked at, and a prompt that is unanswered long after one of them is gone is asked
  again, beside the first. Only lanes whose worker waits for company have that gap, which automask's
  don't;
- on the way, where there is a balancer.

The same question has the same answer, so at worst work is done twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from .torchserve import (
    Answer,
    ConnectionLost,
    TorchServe,
    TorchServeError,
    died_with_worker,
    is_torchserves,
    is_workers,
    ready_workers,
)

RETRY_PAUSE_S = 0.2
"""A balancer that has just lost a host needs a moment to see it."""

LOOK_EVERY_S = 2.0

LOOK_ON_S = 60.0
"""So long after the last question: the next will need to know who was there before it."""

GRACE_S = 3.0
"""What other workers have in hand when one ends is mostly answered by then."""


class Repeats:
    """Asks, and asks again what was lost.

    Args:
        watch: whether to look at lanes' workers: those of one TorchServe, not of several behind
            one address.
        on_repeat: told of every question asked again.
    """

    def __init__(
        self, torchserve: TorchServe, *, watch: bool, on_repeat: Callable[[], None]
    ) -> None:
        self._torchserve = torchserve
        self._watch = watch
        self._on_repeat = on_repeat
        self._lanes: dict[str, _Watched] = {}

    async def ask(
        self,
        lane: str,
        content: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
        *,
        quick: bool,
    ) -> Answer:
        """TorchServe's answer, in `timeout_s` over all.

        Args:
            quick: a prompt's work. Longer work is only asked for again if it certainly ended.

        Raises:
            TorchServeError: as `TorchServe.predict`.
        """
        deadline = time.monotonic() + timeout_s

        def asked() -> asyncio.Task[Answer]:
            left_s = max(deadline - time.monotonic(), RETRY_PAUSE_S)
            return asyncio.create_task(self._torchserve.predict(lane, content, headers, left_s))

        first = asked()
        asking = {first}
        try:
            if not (quick and self._watch and await self._is_forgotten(lane, first)):
                try:
                    answer = await first
                    if not died_with_worker(answer) and not (quick and _is_of_the_way(answer)):
                        return answer
                except ConnectionLost:
                    if not quick:
                        raise
                asking.clear()
                await asyncio.sleep(RETRY_PAUSE_S)
            self._on_repeat()
            asking.add(asked())
            answered, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
            return answered.pop().result()
        finally:
            for task in asking:
                task.cancel()

    async def close(self) -> None:
        """Look at no lane any more."""
        looking = [watched.looking for watched in self._lanes.values()]
        for task in looking:
            task.cancel()
        await asyncio.gather(*looking, return_exceptions=True)

    async def _is_forgotten(self, lane: str, question: asyncio.Task[Answer]) -> bool:
        """Waits until there is an answer, or a worker has ended and still there is none."""
        with self._watched(lane) as gone:
            ended = asyncio.create_task(gone.wait())
            try:
                await asyncio.wait({question, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            if not question.done():
                await asyncio.wait({question}, timeout=GRACE_S)
            return not question.done()

    @contextmanager
    def _watched(self, lane: str) -> Iterator[asyncio.Event]:
        """The event that a worker of the lane, of those seen so far, is there no more."""
        watched = self._lanes.get(lane)
        if watched is None or watched.looking.done():
            watched = self._lanes[lane] = _Watched()
            watched.looking = asyncio.create_task(self._look_at(lane, watched))
        watched.waiting += 1
        try:
            yield watched.gone
        finally:
            watched.waiting -= 1
            watched.last_asked = time.monotonic()

    async def _look_at(self, lane: str, watched: _Watched) -> None:
        known: frozenset[int] = frozenset()
        while watched.waiting or time.monotonic() < watched.last_asked + LOOK_ON_S:
            try:
                workers = ready_workers(await self._torchserve.lane(lane))
            except TorchServeError:
                workers = known  # nothing is known of them, and the question itself will tell
            if known - workers:
                watched.gone.set()
                watched.gone = asyncio.Event()
            known = workers
            await asyncio.sleep(LOOK_EVERY_S)


class _Watched:
    """A lane whose workers are looked at.

    Attributes:
        gone: set when one of them is there no more, and replaced.
        waiting: questions under way.
        last_asked: when the last of them ended.
    """

    looking: asyncio.Task[None]

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.waiting = 0
        self.last_asked = time.monotonic()


def _is_of_the_way(answer: Answer) -> bool:
    """Whether something between us and TorchServe refused, which has lost its host, say."""
    return answer.status in (502, 503) and not is_workers(answer) and not is_torchserves(answer)
