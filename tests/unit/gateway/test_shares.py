"""Each client's share: requests at once, and requests a minute, alone and with a Redis."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from samserve.errors import TooManyRequests
from samserve_gateway import shares
from samserve_gateway.keys import Key, add, digest_of
from samserve_gateway.shares import Counters, Shares
from tests.support import torchserve
from tests.support.redis import Proxy, RedisServer, running_redis
from tests.support.torchserve import answer_when

BODY = {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}


def test_a_client_has_its_requests_of_a_minute_and_others_have_theirs() -> None:
    async def use() -> None:
        limited = Shares(Counters(), 0, 3)
        for _ in range(3):
            await limited.count("alice")
        with pytest.raises(TooManyRequests, match="3 requests a minute") as refused:
            await limited.count("alice")
        assert 0 < refused.value.retry_after_s <= 60
        await limited.count("bob")

    asyncio.run(use())


def test_a_client_has_so_many_under_way() -> None:
    limited = Shares(Counters(), 2, 0)
    with limited.under_way("alice"):
        third = limited.under_way("alice")
        with limited.under_way("alice"), limited.under_way("bob"), pytest.raises(TooManyRequests):
            third.__enter__()
        with limited.under_way("alice"):
            pass
    assert not limited._under_way


def test_ever_new_addresses_take_no_memory() -> None:
    async def use() -> None:
        counters = Counters()
        for number in range(shares.MAX_COUNTED * 3):
            assert await counters.hit("request", f"client{number}", 1) == 0
        assert len(counters._counted) == shares.MAX_COUNTED
        storage: Any = counters._memory.storage
        for table in (storage.storage, storage.expirations):
            assert len(table) <= shares.MAX_COUNTED
        assert await counters.hit("request", f"client{number}", 1) > 0  # the last is still counted

    asyncio.run(use())


# With Redis


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


def test_two_gateways_count_together(redis_server: RedisServer) -> None:
    async def use() -> None:
        one, other = Counters(redis_server.url), Counters(redis_server.url)
        waits = [await each.hit("request", "alice", 4) for each in (one, other) * 3]
        await one.close()
        await other.close()
        assert [wait > 0 for wait in waits] == [False] * 4 + [True] * 2

    asyncio.run(use())


def test_a_redis_that_is_gone_slow_or_wrong_is_replaced_by_counting_alone(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    slow = Proxy(redis_server.port)
    slow.pause_s = float("inf")
    wrong = redis_server.url + "/99"  # there is no such database

    async def use(url: str) -> list[int]:
        counters = Counters(url)
        waits = [await counters.hit("request", "bob", 2) for _ in range(20)]
        await counters.close()
        return waits

    try:
        for url in ("redis://127.0.0.1:9", slow.url, wrong):
            caplog.clear()
            with caplog.at_level(logging.WARNING):
                waits = asyncio.run(use(url))
            assert [wait > 0 for wait in waits] == [False] * 2 + [True] * 18
            [record] = [r for r in caplog.records if r.name == shares.__name__]
            assert "counts alone" in record.message
    finally:
        slow.close()


# Through the gateway


def test_loopback_without_keys_has_no_limits() -> None:
    with torchserve.gateway() as gateway:
        many = shares.REQUESTS_A_MINUTE + 10
        with ThreadPoolExecutor(40) as pool:
            got = list(pool.map(lambda _: gateway.get("/sam/version/").status, range(many)))
    assert set(got) == {200}


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    for name in ("alice", "bob"):
        add(tmp_path / "keys", Key(name, digest_of(name.encode())))
    return tmp_path / "keys"


def test_requests_a_minute_are_counted_by_key(keys_file: Path) -> None:
    with torchserve.gateway(api_keys_file=keys_file, requests_a_minute=3) as gateway:
        statuses = [gateway.get("/sam/version/", {"X-API-Key": "alice"}).status for _ in range(4)]
        assert statuses == [200, 200, 200, 429]
        got = gateway.get("/key/alice/metrics")
        assert (got.status, got.error()["code"]) == (429, "too_many_requests")
        assert 0 < int(got.headers["Retry-After"]) <= 60
        assert gateway.get("/sam/version/", {"X-API-Key": "bob"}).status == 200
        assert gateway.get("/healthz", {"X-API-Key": "alice"}).status == 200


def test_requests_at_once_are_counted_by_key(keys_file: Path) -> None:
    alice, bob = {"X-API-Key": "alice"}, {"X-API-Key": "bob"}
    begun, released = [threading.Event(), threading.Event()], threading.Event()
    with (
        torchserve.gateway(api_keys_file=keys_file, requests_at_once=2) as gateway,
        ThreadPoolExecutor(2) as pool,
    ):
        # A worker embeds one new picture at a time, so the picture is made known first.
        assert gateway.post("/sam/", BODY, alice).status == 200
        gateway.torchserve.script("vit_t", *(answer_when(event, released) for event in begun))
        first = [pool.submit(gateway.post, "/sam/", BODY, alice) for _ in begun]
        try:
            assert all(event.wait(20) for event in begun)
            got = gateway.post("/key/alice/sam/automask/", BODY)
            assert (got.status, got.headers["Retry-After"]) == (429, "1")
            assert got.error()["code"] == "too_many_requests"
            assert gateway.get("/sam/version/", alice).status == 200
            assert gateway.post("/sam/", BODY, bob).status == 200
        finally:
            released.set()
        assert [sent.result().status for sent in first] == [200, 200]
        assert gateway.post("/sam/", BODY, alice).status == 200
