"""Sends a request to TorchServe, and sends it again if it was lost.

A request is lost in one of three ways:

- With an answer: TorchServe fails some of the requests that a worker has when it ends
  ("Worker died.").
- Without an answer: TorchServe 0.12 forgets requests that an ending worker has taken from the queue
  but not begun (`BatchAggregator`, interrupted between the two). So while prompts wait, the list of
  their lane's workers is polled. A prompt that is still unanswered some seconds after a worker has
  gone is sent again, while the first request stays open. Only lanes with batchSize > 1 have this
  race; automask lanes (batchSize 1) do not.
- On the network, if there is a balancer.

The same request has the same answer, so the worst case is that the work is done twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from .torchserve import TorchServe
from .torchserve_answers import (
    Answer,
    ConnectionLost,
    TorchServeError,
    died_with_worker,
    is_torchserves,
    is_workers,
    ready_workers,
)

RETRY_PAUSE_S = 0.2
"""The time that a balancer needs to notice that it has lost a host."""

LOOK_EVERY_S = 2.0
"""The interval at which a lane's workers are polled."""

LOOK_ON_S = 60.0
"""How long polling goes on after the lane's last request: the next request needs to know which
workers there were before it."""

GRACE_S = 3.0
"""How long a request may stay unanswered after a worker has gone. Most requests that other workers
have at that moment are answered by then."""


class Retries:
    """Sends requests, and sends lost ones again, once.

    Args:
        watch: whether to poll the lanes' workers. That works with one TorchServe only, not with
            several behind one address.
        on_retry: called for every request sent again.
        on_look: called with a lane that was polled, and TorchServe's description of it.
    """

    def __init__(
        self,
        torchserve: TorchServe,
        *,
        watch: bool,
        on_retry: Callable[[], None],
        on_look: Callable[[str, Mapping[str, Any]], None] = lambda lane, description: None,
    ) -> None:
        self._torchserve = torchserve
        self._watch = watch
        self._on_retry = on_retry
        self._on_look = on_look
        self._lanes: dict[str, _WatchedLane] = {}

    async def ask(
        self,
        lane: str,
        content: bytes,
        headers: Mapping[str, str],
        timeout_s: float,
        *,
        quick: bool,
    ) -> Answer:
        """Return TorchServe's answer.

        Args:
            timeout_s: for both requests together.
            quick: the work is a prompt's. Longer work is sent again only if it certainly ended.

        Raises:
            TorchServeError: as `TorchServe.predict`.
        """
        deadline = time.monotonic() + timeout_s

        def send() -> asyncio.Task[Answer]:
            left_s = max(deadline - time.monotonic(), RETRY_PAUSE_S)
            return asyncio.create_task(self._torchserve.predict(lane, content, headers, left_s))

        first = send()
        requests = {first}
        try:
            if not (quick and self._watch and await self._is_forgotten(lane, first)):
                try:
                    answer = await first
                    if not died_with_worker(answer) and not (quick and _is_balancers(answer)):
                        return answer
                except ConnectionLost:
                    if not quick:
                        raise
                requests.clear()
                await asyncio.sleep(RETRY_PAUSE_S)
            self._on_retry()
            requests.add(send())
            done, _ = await asyncio.wait(requests, return_when=asyncio.FIRST_COMPLETED)
            return done.pop().result()
        finally:
            for task in requests:
                task.cancel()

    async def close(self) -> None:
        """Stop polling."""
        polling = [watched.polling for watched in self._lanes.values()]
        for task in polling:
            task.cancel()
        await asyncio.gather(*polling, return_exceptions=True)

    async def _is_forgotten(self, lane: str, request: asyncio.Task[Answer]) -> bool:
        """Wait for the answer. Return True if a worker has gone and there is still no answer."""
        with self.watched(lane) as gone:
            ended = asyncio.create_task(gone.wait())
            try:
                await asyncio.wait({request, ended}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                ended.cancel()
            if not request.done():
                await asyncio.wait({request}, timeout=GRACE_S)
            return not request.done()

    @contextmanager
    def watched(self, lane: str) -> Iterator[asyncio.Event]:
        """Poll the lane, and yield the event that one of its workers has gone."""
        if not self._watch:
            yield asyncio.Event()
            return
        watched = self._lanes.get(lane)
        if watched is None or watched.polling.done():
            watched = self._lanes[lane] = _WatchedLane()
            watched.polling = asyncio.create_task(self._poll(lane, watched))
        watched.waiting += 1
        try:
            yield watched.gone
        finally:
            watched.waiting -= 1
            watched.last_request = time.monotonic()

    async def _poll(self, lane: str, watched: _WatchedLane) -> None:
        known: frozenset[int] = frozenset()
        while watched.waiting or time.monotonic() < watched.last_request + LOOK_ON_S:
            try:
                description = await self._torchserve.lane(lane)
                workers = ready_workers(description)
                self._on_look(lane, description)
            except TorchServeError:
                workers = known  # the workers are unknown, and the request itself will fail
            if known - workers:
                watched.gone.set()
                watched.gone = asyncio.Event()
            known = workers
            await asyncio.sleep(LOOK_EVERY_S)


class _WatchedLane:
    """A lane whose workers are polled.

    Attributes:
        polling: the task that polls.
        gone: set when a worker has gone, and then replaced by a new event.
        waiting: number of requests without an answer.
        last_request: when the last request ended, in `time.monotonic`'s seconds.
    """

    polling: asyncio.Task[None]

    def __init__(self) -> None:
        self.gone = asyncio.Event()
        self.waiting = 0
        self.last_request = time.monotonic()


def _is_balancers(answer: Answer) -> bool:
    """Return whether a balancer between the gateway and TorchServe refused, having lost a host."""
    return answer.status in (502, 503) and not is_workers(answer) and not is_torchserves(answer)
