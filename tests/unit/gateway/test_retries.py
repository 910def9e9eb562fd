"""A request that was lost is sent once more; `test_forwarding.py` has the losses with an answer."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from samserve_gateway.retries import Retries
from samserve_gateway.torchserve import Answer, TorchServe, TorchServeError
from tests.support import torchserve
from tests.support.torchserve import (
    QUEUE_FULL,
    WORKER_DIED,
    TorchServeStandIn,
    answer,
    wait_for_ever,
)


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poll and pause for milliseconds."""
    for name in ("LOOK_EVERY_S", "GRACE_S", "RETRY_PAUSE_S"):
        monkeypatch.setattr(f"samserve_gateway.retries.{name}", 0.01)


@dataclass
class Sender:
    """Sends requests to a stand-in."""

    torchserve: TorchServeStandIn
    retries: Retries
    counted: list[None] = field(default_factory=list)

    async def ask(
        self, lane: str = "vit_t", *, quick: bool = True, timeout_s: float = 30
    ) -> Answer:
        headers = {"Content-Type": "application/json", "X-Request-Id": "a"}
        return await self.retries.ask(lane, b"{}", headers, timeout_s, quick=quick)


@asynccontextmanager
async def sender(*, watch: bool = True) -> AsyncIterator[Sender]:
    counted: list[None] = []
    async with (
        torchserve.on_loop() as stand_in,
        TorchServe(stand_in.url, stand_in.url, None) as client,
    ):
        retries = Retries(client, watch=watch, on_retry=lambda: counted.append(None))
        yield Sender(stand_in, retries, counted)
        await retries.close()


async def until_described(stand_in: TorchServeStandIn, times: int) -> None:
    while len(stand_in.described) < times:
        await asyncio.sleep(0.005)


def test_a_prompt_forgotten_with_its_worker_is_sent_once_more() -> None:
    async def work() -> None:
        async with sender() as sent:
            stand_in = sent.torchserve
            stand_in.lanes["vit_t"] = {101, 103}
            stand_in.script("vit_t", wait_for_ever(threading.Event()), answer([1]))
            asking = asyncio.create_task(sent.ask())
            await until_described(stand_in, 3)
            assert len(stand_in.received) == 1
            stand_in.lanes["vit_t"] = {101}
            assert (await asking).json() == [1]
            assert (len(stand_in.received), len(sent.counted)) == (2, 1)

    asyncio.run(work())


def test_a_prompt_is_not_sent_again_while_all_workers_are_there() -> None:
    """Nor if there are more, or if TorchServe does not describe them for a moment."""

    async def work() -> None:
        async with sender() as sent:
            stand_in = sent.torchserve
            asked = threading.Event()

            async def slow(request: web.Request) -> web.StreamResponse:
                await asyncio.to_thread(asked.wait)
                return await answer([2])(request)

            stand_in.script("vit_t", slow)
            asking = asyncio.create_task(sent.ask())
            await until_described(stand_in, 3)
            stand_in.lanes["vit_t"] = {101, 103}
            await until_described(stand_in, 6)
            workers = stand_in.lanes.pop("vit_t")
            await asyncio.sleep(0.05)
            stand_in.lanes["vit_t"] = workers
            await until_described(stand_in, 9)
            asked.set()
            assert (await asking).json() == [2]
            assert (len(stand_in.received), sent.counted) == (1, [])

    asyncio.run(work())


def test_what_the_first_request_still_answers_is_the_answer() -> None:
    """The second one was too much, and is cancelled."""

    async def work() -> None:
        async with sender() as sent:
            stand_in = sent.torchserve
            again = threading.Event()

            async def late(request: web.Request) -> web.StreamResponse:
                await asyncio.to_thread(again.wait)
                return await answer(["first"])(request)

            stand_in.lanes["vit_t"] = {101, 103}
            stand_in.script("vit_t", late, wait_for_ever(again))
            asking = asyncio.create_task(sent.ask())
            await until_described(stand_in, 3)
            stand_in.lanes["vit_t"] = {101}
            assert (await asking).json() == ["first"]
            assert len(stand_in.received) == 2

    asyncio.run(work())


@pytest.mark.parametrize(("quick", "watch"), [(False, True), (True, False)])
def test_workers_are_looked_at_only_for_prompts_of_one_torchserve(quick: bool, watch: bool) -> None:
    async def work() -> None:
        async with sender(watch=watch) as sent:
            assert (await sent.ask(quick=quick)).status == 200
            assert sent.torchserve.described == []

    asyncio.run(work())


@pytest.mark.parametrize("quick", [True, False])
def test_what_is_sent_again_and_what_is_not(quick: bool) -> None:
    async def work() -> None:
        async with sender() as sent:
            html = answer(b"<html>", 502)
            for lost, is_retried in ((WORKER_DIED, True), (QUEUE_FULL, False), (html, quick)):
                before = len(sent.torchserve.received)
                handler = lost if callable(lost) else answer(lost, 503)
                sent.torchserve.script("vit_t", handler)
                got = await sent.ask(quick=quick)
                assert (got.status == 200) == is_retried
                assert len(sent.torchserve.received) - before == 1 + is_retried

    asyncio.run(work())


def test_the_time_is_for_both_requests_together(monkeypatch: pytest.MonkeyPatch) -> None:
    timeouts_s: list[float] = []
    predict = TorchServe.predict

    async def record(
        client: TorchServe, lane: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> Answer:
        timeouts_s.append(timeout_s)
        return await predict(client, lane, body, headers, timeout_s)

    async def work() -> None:
        async with sender() as sent:
            sent.torchserve.script("vit_t", answer(WORKER_DIED, 503))
            assert (await sent.ask(timeout_s=30)).status == 200

    monkeypatch.setattr(TorchServe, "predict", record)
    asyncio.run(work())
    first, second = timeouts_s
    assert second < first <= 30


def test_no_answer_to_either_request_is_an_error() -> None:
    async def work() -> None:
        async with sender() as sent:
            endless = wait_for_ever(threading.Event())
            sent.torchserve.script("vit_t", answer(WORKER_DIED, 503), endless)
            with pytest.raises(TorchServeError) as failed:
                await sent.ask(timeout_s=0.3)
            assert failed.value.status == 504
            assert len(sent.torchserve.received) == 2

    asyncio.run(work())


def test_polling_ends_some_time_after_the_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samserve_gateway.retries.LOOK_ON_S", 0.0)

    async def work() -> None:
        async with sender() as sent:
            await sent.ask()
            while any("Retries._poll" in str(task.get_coro()) for task in asyncio.all_tasks()):
                await asyncio.sleep(0.01)
            n_before = len(sent.torchserve.described)
            await sent.ask()  # and begins again
            await until_described(sent.torchserve, n_before + 1)

    asyncio.run(work())
