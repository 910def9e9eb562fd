"""Which lanes are ready, as `/readyz`, `/metrics` and an orchestrator learn it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from samserve_gateway.readiness import Readiness
from samserve_gateway.settings import Settings
from samserve_gateway.torchserve import TorchServe, TorchServeError
from tests.support import torchserve
from tests.support.metrics import value_of
from tests.support.redis import free_port
from tests.support.torchserve import (
    Gateway,
    TorchServeStandIn,
    answer,
    answer_when,
    wait_for_ever,
)
from tests.support.waiting import wait_for


def lanes(gateway: Gateway) -> Any:
    return gateway.get("/readyz").json()["lanes"]


def test_a_lane_is_ready_once_it_has_answered_a_probe(gateway: Gateway) -> None:
    first = gateway.get("/readyz")
    assert (first.status, first.json()["ready"]) == (503, False)
    warming = {"state": "warming", "workers": 1}
    assert first.json()["lanes"] == {"vit_t": warming, "vit_t-automask": warming}
    wait_for(lambda: gateway.get("/readyz").status == 200)
    ready = {"state": "ready", "workers": 1}
    assert gateway.get("/readyz").json() == {
        "ready": True,
        "lanes": {"vit_t": ready, "vit_t-automask": ready},
    }
    assert gateway.torchserve.received == []  # nobody's requests but its own
    assert gateway.get("/healthz").json() == {"status": "alive"}


def test_a_new_worker_is_probed_and_an_old_one_is_not_again(gateway: Gateway) -> None:
    wait_for(lambda: gateway.get("/readyz").status == 200)
    gateway.torchserve.lanes["vit_t"] = {101, 103}  # one of them has answered
    assert lanes(gateway)["vit_t"] == {"state": "ready", "workers": 2}
    gateway.torchserve.lanes["vit_t"] = {103, 104}
    assert lanes(gateway)["vit_t"] == {"state": "warming", "workers": 2}
    wait_for(lambda: lanes(gateway)["vit_t"]["state"] == "ready")


def test_lanes_without_workers_and_lanes_that_are_missing(gateway: Gateway) -> None:
    gateway.torchserve.lanes = {"vit_t": set()}
    got = gateway.get("/readyz")
    assert got.status == 503
    assert got.json()["lanes"] == {
        "vit_t": {"state": "starting", "workers": 0},
        "vit_t-automask": {"state": "missing", "workers": 0},
    }


def test_one_ready_lane_is_enough_for_whoever_asks_for_any(gateway: Gateway) -> None:
    gateway.torchserve.lanes = {"vit_t": set()}
    assert gateway.get("/readyz?lanes=any").status == 503
    gateway.torchserve.lanes = {"vit_t": {101}}
    wait_for(lambda: gateway.get("/readyz?lanes=any").status == 200)
    assert gateway.get("/readyz?lanes=any").json()["lanes"]["vit_t-automask"]["state"] == "missing"
    assert gateway.get("/readyz").status == 503
    assert gateway.get("/readyz?lanes=all").status == 503


def test_lanes_of_registered_weights_must_be_ready_too(gateway: Gateway) -> None:
    wait_for(lambda: gateway.get("/readyz").status == 200)
    gateway.torchserve.lanes["vit_t.mine"] = set()
    got = gateway.get("/readyz")
    assert (got.status, got.json()["lanes"]["vit_t.mine"]["state"]) == (503, "starting")


def test_metrics_have_each_lanes_state(gateway: Gateway) -> None:
    wait_for(lambda: gateway.get("/readyz").status == 200)
    gateway.torchserve.lanes["vit_t-automask"] = {102, 105}
    gateway.torchserve.lanes["vit_t.mine"] = set()
    page = gateway.metrics()
    for lane, (workers, ready) in {
        "vit_t": (1, 1),
        "vit_t-automask": (2, 1),
        "vit_t.mine": (0, 0),
    }.items():
        assert value_of(page, "samserve_gateway_ready_workers", lane=lane) == workers
        assert value_of(page, "samserve_gateway_lane_ready", lane=lane) == ready
    del gateway.torchserve.lanes["vit_t.mine"]
    assert "vit_t.mine" not in gateway.metrics()


def test_metrics_answer_although_torchserve_does_not(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samserve_gateway.readiness.LOOK_TIMEOUT_S", 0.1)
    wait_for(lambda: gateway.get("/readyz").status == 200)
    gateway.torchserve.hangs = True
    got = gateway.get("/metrics")
    assert got.status == 200
    page = got.content.decode()
    assert page.count('samserve_gateway_lane_ready{lane="vit_t') == 2
    assert value_of(page, "samserve_gateway_lane_ready") == 0
    gateway.torchserve.hangs = False
    assert value_of(gateway.metrics(), "samserve_gateway_lane_ready") == 2


def test_a_torchserve_that_is_down() -> None:
    nowhere = "http://127.0.0.1:9"
    with torchserve.gateway(inference_url=nowhere, management_url=nowhere) as gateway:
        got = gateway.get("/readyz")
        assert (got.status, got.headers["Retry-After"]) == (503, "1")
        unreachable = {"state": "unreachable", "workers": 0}
        assert got.json() == {
            "ready": False,
            "lanes": {"vit_t": unreachable, "vit_t-automask": unreachable},
        }
        assert gateway.get("/healthz").status == 200
        assert value_of(gateway.metrics(), "samserve_gateway_lane_ready", lane="vit_t") == 0


def test_a_torchserve_that_hangs_is_unreachable_and_then_ready_again(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("samserve_gateway.readiness.LOOK_TIMEOUT_S", 0.1)
    wait_for(lambda: gateway.get("/readyz").status == 200)
    gateway.torchserve.hangs = True
    assert {lane["state"] for lane in lanes(gateway).values()} == {"unreachable"}
    gateway.torchserve.hangs = False
    assert gateway.get("/readyz").status == 200


def test_lanes_of_a_torchserve_that_the_balancer_does_not_reach() -> None:
    with torchserve.gateway(models="vit_t vit_b vit_l") as gateway:
        gateway.torchserve.lanes |= {"vit_b": {103}, "vit_b-automask": {104}}
        gateway.torchserve.cut_off = {"vit_b", "vit_b-automask"}
        wait_for(lambda: lanes(gateway)["vit_t-automask"]["state"] == "ready")
        states = {name: lane["state"] for name, lane in lanes(gateway).items()}
        assert (states["vit_b"], states["vit_b-automask"]) == ("unreachable", "unreachable")
        assert (states["vit_l"], states["vit_l-automask"]) == ("missing", "missing")
        assert gateway.get("/readyz").status == 503


# The parts that only the launcher and a registration use


@asynccontextmanager
async def readiness(
    joining: set[str], silent_s: Callable[[str], float]
) -> AsyncIterator[tuple[TorchServeStandIn, Readiness]]:
    async with (
        torchserve.on_loop() as stand_in,
        TorchServe(stand_in.url, stand_in.url, None) as client,
    ):
        readiness = Readiness(client, Settings(), joining, silent_s)
        yield stand_in, readiness
        await readiness.close()


def run(
    work: Callable[[TorchServeStandIn, Readiness], Awaitable[None]],
    *joining: str,
    silent_s: Callable[[str], float] = lambda lane: 0.0,
) -> None:
    async def main() -> None:
        async with readiness(set(joining), silent_s) as (stand_in, ready):
            await work(stand_in, ready)

    asyncio.run(main())


def test_a_family_that_is_being_registered_is_left_out() -> None:
    async def work(stand_in: TorchServeStandIn, readiness: Readiness) -> None:
        stand_in.lanes |= {"vit_t.mine": set(), "vit_t.mine-automask": set()}
        _, lanes = await readiness.check()
        assert list(lanes) == ["vit_t", "vit_t-automask"]

    run(work, "vit_t.mine")


def test_a_probe_that_somebody_waits_for() -> None:
    async def work(stand_in: TorchServeStandIn, readiness: Readiness) -> None:
        await readiness.probe_now("vit_t")
        _, lanes = await readiness.check()
        assert lanes["vit_t"]["state"] == "ready"
        with pytest.raises(TorchServeError, match="not found"):
            await readiness.probe_now("vit_b")

    run(work)


def test_a_probe_that_fails_is_logged_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    async def work(stand_in: TorchServeStandIn, readiness: Readiness) -> None:
        stand_in.probes.append(answer(b"no", 500))
        del stand_in.lanes["vit_t-automask"]
        while (await readiness.check())[1]["vit_t"]["state"] != "ready":
            await asyncio.sleep(0.01)

    with caplog.at_level(logging.WARNING):
        run(work)
    [message] = caplog.messages
    assert message == "Lane vit_t failed its probe: vit_t answers b'no'"


def test_a_prompt_lane_that_answers_nothing_is_silent_until_it_answers_a_probe() -> None:
    """An automask lane may be silent for hours, and the large types for minutes."""
    silence = dict.fromkeys(("vit_t", "vit_t-automask", "vit_b"), 0.0)

    async def work(stand_in: TorchServeStandIn, readiness: Readiness) -> None:
        stand_in.lanes["vit_b"] = {7}

        async def states() -> list[str]:
            _, lanes = await readiness.check()
            return [lanes[name]["state"] for name in silence]

        async def seen(*wanted: str) -> None:
            while await states() != list(wanted):
                await asyncio.sleep(0.01)

        await seen("ready", "ready", "ready")
        for seconds, wanted in (
            (20.1, ["silent", "ready", "ready"]),
            (300.1, ["silent", "ready", "silent"]),
        ):
            silence.update(dict.fromkeys(silence, seconds))
            assert await states() == wanted
        silence.update(dict.fromkeys(silence, 0.0))
        assert await states() == ["warming", "ready", "warming"]
        await seen("ready", "ready", "ready")

    run(work, silent_s=silence.__getitem__)


def test_a_torchserve_that_has_ended_is_unreachable_and_a_new_one_is_looked_at() -> None:
    async def main() -> None:
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        async with TorchServe(url, url, None) as client:
            readiness = Readiness(client, Settings(), set())

            async def states() -> set[str]:
                return {lane["state"] for lane in (await readiness.check())[1].values()}

            async with torchserve.on_loop(port):
                while await states() != {"ready"}:
                    await asyncio.sleep(0.01)
            assert await states() == {"unreachable"}
            async with torchserve.on_loop(port) as stand_in:
                stand_in.lanes = {"vit_t": set(), "vit_t-automask": set()}
                assert await states() == {"starting"}
                stand_in.lanes = {"vit_t": {201}, "vit_t-automask": {202}}
                assert await states() == {"warming"}
                while await states() != {"ready"}:
                    await asyncio.sleep(0.01)
            await readiness.close()

    asyncio.run(main())


@pytest.mark.parametrize("count", [1, 2])
def test_a_probe_that_is_lost_with_one_of_its_workers_is_sent_again(count: int) -> None:
    async def work(stand_in: TorchServeStandIn, readiness: Readiness) -> None:
        async def warming() -> list[str]:
            _, lanes = await readiness.check()
            return [name for name, lane in lanes.items() if lane["state"] == "warming"]

        stand_in.lanes = {name: set(range(count)) for name in stand_in.lanes}
        begun = threading.Event()
        stand_in.probes += [wait_for_ever(begun)]
        while len(await warming()) != 1 or not begun.is_set():
            await asyncio.sleep(0.01)
        [lost] = await warming()
        stand_in.lanes[lost] = set(range(1, count + 1))
        while await warming():
            await asyncio.sleep(0.01)

    run(work)


def test_lanes_are_probed_although_nobody_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samserve_gateway.readiness.LOOK_EVERY_S", 0.01)

    async def work(stand_in: TorchServeStandIn, readiness: Readiness) -> None:
        probed = [threading.Event(), threading.Event()]
        released = threading.Event()
        released.set()
        stand_in.probes = [answer_when(event, released) for event in probed]
        workers, stand_in.lanes = stand_in.lanes, {}
        _, lanes = await readiness.check()
        assert {lane["state"] for lane in lanes.values()} == {"missing"}
        stand_in.lanes = workers
        while not all(event.is_set() for event in probed):
            await asyncio.sleep(0.01)

    run(work)


def test_nobody_has_asked_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samserve_gateway.readiness.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("samserve_gateway.readiness.LOOK_ON_S", 0.0)

    async def work(stand_in: TorchServeStandIn, readiness: Readiness) -> None:
        stand_in.lanes = {"vit_t": set(), "vit_t-automask": set()}
        await readiness.check()
        await asyncio.sleep(0.1)
        assert sorted(stand_in.described) == ["vit_t", "vit_t-automask"]

    run(work)
