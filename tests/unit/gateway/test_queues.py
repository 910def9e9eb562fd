"""The queue in front of a lane: turns, refusals, and what leaves before its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any

import pytest

from samserve.errors import Busy, TimedOut
from samserve_gateway import queues
from samserve_gateway.queues import LaneQueue, LaneQueues
from samserve_gateway.torchserve_answers import TorchServeError


def description(workers: int, batch_size: int = 1) -> dict[str, Any]:
    ready = [{"pid": pid, "status": "READY"} for pid in range(workers)]
    return {"batchSize": batch_size, "workers": [*ready, {"pid": 99, "status": "UNLOADING"}]}


class Lane:
    """A lane that answers requests when the test says so, behind a queue."""

    def __init__(self, lane: str = "vit_t-automask", size: int = 100, workers: int = 1) -> None:
        self.queue = LaneQueue(lane, size, throttled=True)
        self.queue.resize(description(workers))
        self.begun: list[str] = []
        self._released: dict[str, asyncio.Event] = {}

    def ask(
        self, client: str, name: str, timeout_s: float = 60, picture: str | None = None
    ) -> asyncio.Task[str]:
        self._released[name] = asyncio.Event()
        work = self.queue.run(client, timeout_s, lambda: self._work(name), picture=picture)
        return asyncio.create_task(work)

    async def _work(self, name: str) -> str:
        self.begun.append(name)
        await self._released[name].wait()
        if "fails" in name:
            raise TorchServeError(name)
        return name

    async def release(self, *names: str) -> None:
        for name in names:
            self._released[name].set()
            await settle()


async def settle() -> None:
    """Let every task go on until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_clients_take_turns() -> None:
    async def work() -> None:
        lane = Lane()
        asked = [lane.ask("alice", f"a{n}") for n in range(4)]
        await settle()
        asked += [lane.ask("bob", "b0"), lane.ask("bob", "b1"), lane.ask("carol", "c0")]
        await settle()
        for _ in range(len(asked)):
            await lane.release(lane.begun[-1])
        assert [task.result() for task in asked] == ["a0", "a1", "a2", "a3", "b0", "b1", "c0"]
        # Alice's second waits until everybody else has had a turn.
        assert set(lane.begun[1:3]) <= {"a1", "b0", "c0"}
        assert lane.begun.index("b0") <= 3
        assert lane.begun.index("c0") <= 3
        assert lane.begun.index("a2") > max(lane.begun.index("b0"), lane.begun.index("c0"))

    run(work())


def test_no_client_has_a_second_worker_while_another_one_waits() -> None:
    async def work() -> None:
        lane = Lane(workers=2)
        asked = [lane.ask("alice", f"a{n}") for n in range(3)]
        await settle()
        assert lane.begun == ["a0", "a1"]
        asked.append(lane.ask("bob", "b0"))
        await settle()
        await lane.release("a0")
        assert lane.begun == ["a0", "a1", "b0"]  # alice has one inside, bob had none
        await lane.release("a1")
        assert lane.begun[-1] == "a2"
        await lane.release("a2", "b0")
        await asyncio.gather(*asked)

    run(work())


def test_a_full_queue_refuses_and_names_its_number() -> None:
    async def work() -> None:
        lane = Lane(size=2)
        asked = [lane.ask("alice", f"a{n}") for n in range(3)]
        await settle()
        with pytest.raises(Busy, match="2 requests wait for vit_t") as refused:
            await lane.ask("bob", "b0")
        assert refused.value.retry_after_s >= 1
        await lane.release("a0")
        asked.append(lane.ask("bob", "b1"))
        await settle()
        await lane.release("a1", "b1", "a2")
        assert len(await asyncio.gather(*asked)) == 4

    run(work())


def test_what_leaves_while_it_waits_is_never_begun() -> None:
    async def work() -> None:
        lane = Lane(size=3)
        first, *leaving = [lane.ask("alice", f"a{n}") for n in range(4)]
        await settle()
        for task in leaving:
            task.cancel()
        await settle()
        assert lane.queue.waiting == 0
        last = lane.ask("alice", "last")
        await lane.release("a0")
        await lane.release("last")
        assert await last == "last"
        assert await first == "a0"
        assert lane.begun == ["a0", "last"]

    run(work())


def test_what_leaves_at_the_moment_of_its_turn_gives_the_turn_on() -> None:
    async def work() -> None:
        lane = Lane()
        first, second, third = (lane.ask("alice", f"a{n}") for n in range(3))
        await settle()
        lane._released["a0"].set()
        lane.queue._turns.most_inside = 2
        lane.queue._admit()  # the second's turn comes …
        second.cancel()  # … and it leaves before it can know
        await settle()
        assert await first == "a0"
        await lane.release("a2")
        assert await third == "a2"
        assert (lane.queue._turns.inside, lane.queue.waiting) == (0, 0)
        assert "a1" not in lane.begun

    run(work())


def test_what_leaves_inside_keeps_its_place_until_torchserve_has_answered() -> None:
    async def work() -> None:
        lane = Lane()
        for name in ("a0", "a1 fails"):
            leaving, waiting = lane.ask("alice", name), lane.ask("bob", f"{name} next")
            await settle()
            leaving.cancel()
            await settle()
            assert leaving.cancelled()
            assert lane.begun[-1] == name
            await lane.release(name)
            assert lane.begun[-1] == f"{name} next"
            await lane.release(f"{name} next")
            assert "next" in (await asyncio.gather(waiting, return_exceptions=True))[0].__str__()
        assert not lane.queue._abandoned

    run(work())


def test_a_turn_that_comes_too_late_is_an_error() -> None:
    async def work() -> None:
        lane = Lane()
        first = lane.ask("alice", "a0")
        await settle()
        with pytest.raises(TimedOut, match=r"0\.01 s is over"):
            await lane.ask("bob", "b0", timeout_s=0.01)
        with pytest.raises(TimedOut, match="large work"):
            await lane.queue.enter("bob", 0.01, late="large work was under way")
        assert lane.queue.waiting == 0
        await lane.release("a0")
        assert await first == "a0"
        assert lane.begun == ["a0"]

    run(work())


def test_an_error_of_the_work_frees_the_place() -> None:
    async def work() -> None:
        lane = Lane()
        failing, other = lane.ask("alice", "fails"), lane.ask("alice", "other")
        await settle()
        await lane.release("fails", "other")
        with pytest.raises(TorchServeError):
            await failing
        assert await other == "other"

    run(work())


@pytest.mark.parametrize(
    ("lane", "workers", "batch_size", "inside"),
    [
        ("vit_t", 1, 4, 8),
        ("vit_t", 3, 4, 24),
        ("vit_t", 0, 4, 8),  # the workers restart: TorchServe keeps what it has
        ("vit_t-automask", 1, 1, 1),
        ("vit_t-automask", 2, 1, 2),
    ],
)
def test_how_much_torchserve_gets(lane: str, workers: int, batch_size: int, inside: int) -> None:
    async def work() -> None:
        held = Lane(lane)
        asked = [held.ask("alice", f"a{n}") for n in range(40)]
        held.queue.resize(description(workers, batch_size))
        await settle()
        assert len(held.begun) == max(inside, 1)
        held.queue.resize(description(50, batch_size))  # scaled up
        await settle()
        assert len(held.begun) == 40
        await held.release(*held.begun)
        await asyncio.gather(*asked)

    run(work())


def test_torchserve_gets_no_more_than_its_own_queue_takes() -> None:
    queue = LaneQueue("vit_t", 100, throttled=True)
    status = {"remainingCapacity": 7, "pendingRequests": 3}
    queue.resize({**description(40, 4), "jobQueueStatus": status})
    assert queue._turns.most_inside == 170


def test_a_queue_that_cannot_be_emptied_in_time_refuses_early() -> None:
    async def work() -> None:
        lane = Lane("vit_t")
        lane.queue.resize(description(1))
        asked = [lane.ask("alice", f"a{n}") for n in range(5)]
        await settle()
        lane.queue._interval_s = 10.0  # an answer every ten seconds
        with pytest.raises(Busy):
            await lane.ask("bob", "b0", timeout_s=30)
        with pytest.raises(Busy) as refused:
            lane.queue.refuse_if_full(1)
        assert refused.value.retry_after_s == 15
        asked.append(lane.ask("bob", "b1", timeout_s=1000))
        await settle()
        await lane.release(*["a0", "a1"])
        for name in ("a2", "a3", "a4", "b1"):
            lane._released[name].set()
        await asyncio.gather(*asked)

    run(work())


def test_behind_a_balancer_nothing_waits_here() -> None:
    async def work() -> None:
        queue = LaneQueue("vit_t", 1, throttled=False)
        cancelled = asyncio.Event()

        async def endless() -> None:
            try:
                await asyncio.Event().wait()
            finally:
                cancelled.set()

        asked = [asyncio.create_task(queue.run("alice", 60, endless)) for _ in range(300)]
        await settle()
        assert queue._turns.inside == 300
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert cancelled.is_set()
        assert queue._turns.inside == 0

    run(work())


def test_a_mode_is_full_only_if_all_its_lanes_are(monkeypatch: pytest.MonkeyPatch) -> None:
    lanes = ["vit_t", "vit_t-automask"]

    async def list_lanes() -> list[str]:
        return list(lanes)

    async def work() -> None:
        all_queues = LaneQueues(1, throttled=True, list_lanes=list_lanes)
        all_queues.refuse_if_all_full("prompt")
        queue = all_queues.of("vit_t")
        queue.resize(description(1))
        asked = [asyncio.create_task(queue.enter("alice", 60)) for _ in range(3)]
        await settle()
        all_queues.refuse_if_all_full("prompt")  # now it asks for the list
        await settle()
        with pytest.raises(Busy):
            all_queues.refuse_if_all_full("prompt")
        all_queues.refuse_if_all_full("automask")
        lanes.append("vit_b")
        monkeypatch.setattr(queues, "LIST_EVERY_S", -1.0)
        monkeypatch.setattr(all_queues, "_listed_at", float("-inf"))
        all_queues.refuse_if_all_full("prompt")
        await settle()
        monkeypatch.setattr(queues, "LIST_EVERY_S", 5.0)
        all_queues.refuse_if_all_full("prompt")  # vit_b has room
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        await all_queues.close()

    run(work())


def test_the_age_of_the_oldest_and_the_silence_of_the_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    # Only this module's clock: asyncio needs the real one.
    monkeypatch.setattr(queues, "time", SimpleNamespace(monotonic=lambda: now))

    async def work() -> None:
        nonlocal now

        def state() -> tuple[int, int, float, float]:
            queue = lane.queue
            return queue.unanswered, queue.waiting, queue.oldest_s(), queue.silent_s()

        lane = Lane()
        assert state() == (0, 0, 0, 0)
        first = lane.ask("alice", "first")
        await settle()
        now += 5
        second = lane.ask("alice", "second")
        third = lane.ask("bob", "third")
        await settle()
        now += 5
        assert state() == (3, 2, 10, 10)
        third.cancel()  # it leaves before its turn: that is no answer
        await settle()
        assert state() == (2, 1, 10, 10)
        await lane.release("first")
        now += 1
        assert state() == (1, 0, 6, 1)
        await lane.release("second")
        now += 100
        assert state() == (0, 0, 0, 0)
        fourth = lane.ask("alice", "fails")
        await settle()
        now += 2
        assert state() == (1, 0, 2, 2)
        await lane.release("fails")
        assert state() == (0, 0, 0, 0)
        await asyncio.gather(first, second, third, fourth, return_exceptions=True)

    run(work())
