"""The bodies of all requests together are bounded, and their memory is given back."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from samserve_gateway import body_budget
from samserve_gateway.body_budget import BodyBudget, Share
from samserve_gateway.settings import Settings
from tests.support import torchserve
from tests.support.metrics import value_of
from tests.support.torchserve import Gateway
from tests.support.waiting import wait_for

LIMIT = 2**20
BODY = json.dumps({"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "A" * (LIMIT - 100)}).encode()


@pytest.fixture
def small() -> Iterator[Gateway]:
    with torchserve.gateway(max_body_bytes=LIMIT, bodies_bytes=2 * LIMIT) as gateway:
        yield gateway


def test_one_client_gets_half_and_two_get_all() -> None:
    budget = BodyBudget(100)
    assert budget.take("a", 50) is None
    too_much = budget.take("a", 1)
    assert too_much is not None
    assert "50" in too_much.message
    assert budget.take("b", 50) is None
    full = budget.take("c", 1)
    assert full is not None
    assert "100" in full.message
    budget.give_back("a", 50)
    assert budget.take("c", 50) is None
    assert budget.held == 100


def test_what_is_refused_is_not_held() -> None:
    budget = BodyBudget(100)
    share = Share(budget, "a")
    assert share.take(30) is None
    assert share.take(30) is not None
    assert budget.held == 30
    share.give_back()
    share.give_back()
    assert budget.held == 0


def test_memory_goes_back_after_large_bodies_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body_budget, "TRIM_DELAY_S", 0)

    async def trims_after(size: int) -> int:
        trims = 0
        done = asyncio.Event()

        def trim() -> None:
            nonlocal trims
            trims += 1
            loop.call_soon_threadsafe(done.set)

        loop = asyncio.get_running_loop()
        budget = BodyBudget(4 * size, trim)
        for _ in range(3):
            assert budget.take("a", size) is None
            budget.give_back("a", size)
        if size >= body_budget.TRIM_BYTES:
            await asyncio.wait_for(done.wait(), 30)
        await asyncio.sleep(0.05)
        return trims

    assert asyncio.run(trims_after(body_budget.TRIM_BYTES)) == 1
    assert asyncio.run(trims_after(body_budget.TRIM_BYTES - 1)) == 0


def held_by(gateway: Gateway) -> float:
    return value_of(gateway.metrics(), "samserve_gateway_bodies_bytes")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_body_beyond_the_budget_is_refused_until_there_is_room(
    small: Gateway, compressed: bool
) -> None:
    with ExitStack() as opened:
        for _ in range(2):
            holder = opened.enter_context(socket.create_connection(("127.0.0.1", small.port)))
            holder.sendall(
                b"POST /sam/ HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s"
                % (len(BODY), BODY[:-1])
            )
        wait_for(lambda: held_by(small) == 2 * (len(BODY) - 1))
        headers = {"Content-Encoding": "gzip"} if compressed else {}
        content = gzip.compress(BODY) if compressed else BODY
        refused = small.post("/sam/", content, headers)
        assert (refused.status, refused.error()["code"]) == (503, "busy")
        assert str(2 * LIMIT) in refused.error()["message"]
        assert refused.headers["Retry-After"]
        assert small.post("/sam/", b"{").status == 400  # a small one finds room
    wait_for(lambda: held_by(small) == 0)
    assert small.torchserve.received == []
    assert small.post("/sam/", BODY).status == 200
    wait_for(lambda: held_by(small) == 0)


@pytest.mark.parametrize(
    ("sent", "status"),
    [(BODY, 200), (b"[" * LIMIT, 413), (b" " * (LIMIT + 1), 413), (b"{", 400)],
    ids=["good", "nested", "too large", "no JSON"],
)
def test_every_end_gives_the_bytes_back(small: Gateway, sent: bytes, status: int) -> None:
    for _ in range(3):
        assert small.post("/sam/", sent).status == status
    wait_for(lambda: held_by(small) == 0)


def test_a_budget_with_no_room_for_a_body_is_a_wrong_setting() -> None:
    with pytest.raises(ValueError, match="too little"):
        Settings(bodies_bytes=2**20)
    assert Settings().body_budget() == 2**28
    assert Settings(max_body_bytes=2**30).body_budget() == 2**32
