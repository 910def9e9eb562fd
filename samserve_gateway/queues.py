"""The queue in front of each lane: it decides who is next, and refuses when it is full.

TorchServe gets only as many requests of a lane as its workers need to be busy: two batches each.
All others wait here, where

- a request whose client leaves, or whose time is over, is dropped and costs nothing;
- clients take turns, so that none waits behind all the work of another;
- a full queue refuses at once, without a question to TorchServe;
- a prompt on a known picture does not wait behind new pictures. TorchServe sends the answers of a
  batch together, and a new picture takes twenty times as long. So each prompt worker gets one new
  picture at a time.

With several TorchServes behind a balancer, nobody tells the gateway how many workers there are.
Then nothing waits here, and the queues of the TorchServes hold what waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterator, Mapping
from typing import Any, TypeVar

from samserve.errors import Busy, SamserveError, TimedOut
from samserve.serving.lanes import Mode, mode_of, model_type_of

from .torchserve_answers import TorchServeError, has_gpu, ready_workers
from .turns import Turn, Turns

logger = logging.getLogger(__name__)

T = TypeVar("T")

BATCHES_INSIDE = 2
"""Batches that TorchServe gets for each prompt worker: one is computed, and one is ready when the
worker has done it."""

FIRST_INSIDE: dict[Mode, int] = {"prompt": 8, "automask": 1}
"""Requests that TorchServe gets before the gateway knows how many workers there are."""

MAX_RETRY_AFTER_S = 60

LIST_EVERY_S = 5.0
"""How old the list of lanes may be by which a mode is found to be full."""

LOG_EVERY_S = 60.0
"""How often the log says that a queue is full."""

_SMOOTHING = 0.05
"""The weight of the newest of the intervals between answers. Batches answer in bursts."""


class LaneQueue:
    """The queue in front of one lane.

    Args:
        size: requests that may wait.
        throttled: whether requests wait here at all.
    """

    def __init__(self, lane: str, size: int, *, throttled: bool) -> None:
        self.throttled = throttled
        self._lane = lane
        self._size = size
        self._turns = Turns(
            FIRST_INSIDE[mode_of(lane)] if throttled else math.inf,
            1 if throttled and mode_of(lane) == "prompt" else math.inf,
        )
        self._interval_s = 0.0
        self._left_at = 0.0
        self._unanswered: dict[Turn, None] = {}  # the oldest first
        self._busy_since = 0.0
        self._logged_at = -math.inf
        self._abandoned: set[asyncio.Task[Any]] = set()

    @property
    def waiting(self) -> int:
        return self._turns.waiting

    @property
    def unanswered(self) -> int:
        """The number of requests that wait here or have no answer yet."""
        return len(self._unanswered)

    def oldest_s(self) -> float:
        """Return the seconds for which the oldest request has had no answer; 0 if there is none."""
        oldest = next(iter(self._unanswered), None)
        return 0.0 if oldest is None else time.monotonic() - oldest.since

    def silent_s(self) -> float:
        """Return for how many seconds the lane has had requests and has answered none."""
        if not self._unanswered:
            return 0.0
        return time.monotonic() - max(self._left_at, self._busy_since)

    def resize(self, description: Mapping[str, Any]) -> None:
        """Learn the lane's workers and batch size from TorchServe's description of the lane."""
        if self.throttled:
            workers = max(1, len(ready_workers(description)))
            at_work = workers * int(description["batchSize"])
            batches = 1
            if mode_of(self._lane) == "prompt":
                batches = BATCHES_INSIDE
                # A GPU embeds a picture in the time of a click, and must not wait for the next one.
                self._turns.most_pictures = math.inf if has_gpu(description) else workers
            queue = description.get("jobQueueStatus", {})
            room = queue.get("remainingCapacity", math.inf) + queue.get("pendingRequests", 0)
            self._turns.most_inside = min(at_work * batches, at_work + room)
            self._admit()

    async def run(
        self,
        client: str,
        timeout_s: float,
        work: Callable[[], Coroutine[Any, Any, T]],
        *,
        picture: Hashable | None = None,
        late: str | None = None,
    ) -> T:
        """Wait for this client's turn, do the work, and return its result.

        If the caller is cancelled while TorchServe has the request, the work goes on without it:
        TorchServe computes the request anyway, and keeps its place until then.

        Raises: as `enter`, and what the work raises.
        """
        turn = await self.enter(client, timeout_s, picture=picture, late=late)
        if not self.throttled:
            try:
                return await work()
            finally:
                self.leave(turn)
        task = asyncio.create_task(work())
        task.add_done_callback(lambda _: self.leave(turn))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            self._keep_task(task)
            raise

    async def enter(
        self,
        client: str,
        timeout_s: float,
        *,
        picture: Hashable | None = None,
        late: str | None = None,
    ) -> Turn:
        """Wait for this client's turn, and return it. Whoever enters must `leave` with it.

        Args:
            picture: see `turns.Turn`.
            late: the message if the turn does not come in time.

        Raises:
            Busy: the queue is full.
            TimedOut: the turn did not come within `timeout_s`.
        """
        loop = asyncio.get_running_loop()
        turn = Turn(client, time.monotonic(), picture, loop.create_future())
        if self._turns.may_begin(turn):  # then none of those that wait may
            self._take(turn)
            self._turns.begin(turn)
            return turn
        self.refuse_if_full(timeout_s)
        self._take(turn)
        self._turns.wait(turn)
        late_error = TimedOut(late or too_late(timeout_s))
        timer = loop.call_later(timeout_s, _fail, turn.begin, late_error)
        try:
            await turn.begin
        except BaseException:
            if turn.has_come():
                self.leave(turn)  # the turn came at the moment at which the client left
            else:
                self._turns.drop(turn)
                del self._unanswered[turn]
            raise
        finally:
            timer.cancel()
        return turn

    def leave(self, turn: Turn) -> None:
        """Count a request as answered, and let the next one in."""
        del self._unanswered[turn]
        now = time.monotonic()
        if self._turns.waiting:
            interval_s = now - self._left_at
            weight = _SMOOTHING if self._interval_s else 1.0
            self._interval_s += weight * (interval_s - self._interval_s)
        self._left_at = now
        self._turns.end(turn)
        self._admit()

    def refuse_if_full(self, timeout_s: float = math.inf) -> None:
        """Refuse a request that would have to wait too long.

        Raises:
            Busy: as many requests wait as may, or so many that this one would not be answered in
                time.
        """
        expected_s = self._turns.waiting * self._interval_s
        # Automasks take very different times, so their wait cannot be foretold.
        foretold = (
            mode_of(self._lane) == "prompt" and self._turns.waiting >= self._turns.most_inside
        )
        too_long = foretold and expected_s > timeout_s / 2
        if self._turns.waiting >= self._size or too_long:
            # Half of the time until it is empty: a queue that runs empty wastes the workers.
            self._log_full()
            again_s = min(MAX_RETRY_AFTER_S, max(1, round(expected_s / 2)))
            raise Busy(
                f"The queue is full: {self._turns.waiting} requests wait for "
                f"{model_type_of(self._lane)}. Try again in {again_s} s.",
                again_s,
            )

    def keep(self, work: Coroutine[Any, Any, None]) -> None:
        """Do some work that nobody waits for."""
        self._keep_task(asyncio.create_task(work))

    def close(self) -> None:
        """Cancel the work that nobody waits for."""
        for task in self._abandoned:
            task.cancel()

    def _keep_task(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.add(task)
        task.add_done_callback(self._forget)

    def _log_full(self) -> None:
        if time.monotonic() > self._logged_at + LOG_EVERY_S:
            self._logged_at = time.monotonic()
            logger.warning(
                "The queue of lane %s is full: %d requests wait, and more are refused.",
                self._lane,
                self._turns.waiting,
            )

    def _take(self, turn: Turn) -> None:
        if not self._unanswered:
            self._busy_since = turn.since
        self._unanswered[turn] = None

    def _admit(self) -> None:
        """Let in who is next, as long as there are places."""
        while (turn := self._turns.next()) is not None:
            if not turn.begin.done():
                self._turns.begin(turn)
                turn.begin.set_result(None)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # asyncio logs an exception that nobody looks at


class LaneQueues:
    """The queues of all lanes.

    Args:
        size: requests that may wait in each.
        throttled: whether requests wait here at all.
        list_lanes: returns the lanes that TorchServe has.
    """

    def __init__(
        self, size: int, *, throttled: bool, list_lanes: Callable[[], Awaitable[list[str]]]
    ) -> None:
        self._size = size
        self._throttled = throttled
        self._list_lanes = list_lanes
        self._queues: dict[str, LaneQueue] = {}
        self._lanes: list[str] = []
        self._listed_at = -math.inf
        self._listing: asyncio.Task[None] | None = None

    def of(self, lane: str) -> LaneQueue:
        """Return the queue of a lane that exists."""
        if lane not in self._queues:
            self._queues[lane] = LaneQueue(lane, self._size, throttled=self._throttled)
        return self._queues[lane]

    def silent_s(self, lane: str) -> float:
        """Return for how many seconds a lane has had requests and has answered none."""
        return self._queues[lane].silent_s() if lane in self._queues else 0.0

    def resize(self, lane: str, description: Mapping[str, Any]) -> None:
        """Learn a lane's workers and batch size."""
        self.of(lane).resize(description)

    def __iter__(self) -> Iterator[tuple[str, LaneQueue]]:
        """Iterate over the lanes that have had requests, and their queues."""
        return iter(list(self._queues.items()))

    def refuse_if_all_full(self, mode: Mode) -> None:
        """Refuse a request before it is read, if every lane that might answer it is full.

        Raises:
            Busy: all lanes of the mode are full.
        """
        refusals = {
            lane: refusal
            for lane, queue in self._queues.items()
            if mode_of(lane) == mode and (refusal := _refusal_of(queue))
        }
        if not refusals:
            return
        # A lane that nobody has used yet has no queue here, and is not full.
        age_s = time.monotonic() - self._listed_at
        if age_s > LIST_EVERY_S and (self._listing is None or self._listing.done()):
            self._listing = asyncio.create_task(self._list())
        lanes = [lane for lane in self._lanes if mode_of(lane) == mode]
        if age_s <= 2 * LIST_EVERY_S and lanes and all(lane in refusals for lane in lanes):
            raise min((refusals[lane] for lane in lanes), key=lambda busy: busy.retry_after_s)

    async def close(self) -> None:
        """Cancel all work that nobody waits for."""
        if self._listing is not None:
            self._listing.cancel()
            await asyncio.gather(self._listing, return_exceptions=True)
        for queue in self._queues.values():
            queue.close()

    async def _list(self) -> None:
        # Without a list, requests are read before they are refused.
        with contextlib.suppress(TorchServeError):
            self._lanes = await self._list_lanes()
            self._listed_at = time.monotonic()


def too_late(timeout_s: float) -> str:
    """Return what a client is told whose turn did not come within this time."""
    return f"The time limit of {timeout_s:g} s is over: many requests wait."


def _refusal_of(queue: LaneQueue) -> Busy | None:
    try:
        queue.refuse_if_full()
    except Busy as refusal:
        return refusal
    return None


def _fail(begin: asyncio.Future[None], error: SamserveError) -> None:
    if not begin.done():
        begin.set_exception(error)
