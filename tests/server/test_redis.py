"""Machines share embeddings in Redis, and the answers stay the same if Redis fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from samserve.embeddings.redis_store import FAILURES
from samserve_launcher.options import Options, free_ports
from tests.support.answers import source
from tests.support.bodies import prompt_body
from tests.support.lanes import described, embedding_counters, forget_everything
from tests.support.metrics import Since, value_of
from tests.support.redis import Proxy, RedisServer, running_redis
from tests.support.sample_pictures import new_picture
from tests.support.servers import Server, running_server
from tests.support.waiting import wait_for


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with running_redis("--maxmemory-policy", "noeviction") as server:
        yield server


@pytest.fixture(scope="module")
def proxy(redis: RedisServer) -> Iterator[Proxy]:
    way = Proxy(redis.port)
    yield way
    way.close()


@pytest.fixture(scope="module")
def sharing(proxy: Proxy) -> Iterator[Server]:
    """A server whose workers share their embeddings in Redis."""
    options = free_ports(Options())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SAMSERVE_REDIS_URL", proxy.url)
        with running_server(options) as server:
            yield server


def outcomes(server: Server) -> Counter[str]:
    """Return how often each outcome of a Redis command has occurred in the worker."""
    return Counter(described(server, "vit_t")["customizedMetadata"]["redis"])


def answered(server: Server, body: Any) -> tuple[str, Any]:
    """Return the embedding's source and the answer, which must be 200."""
    answer = server.post("/sam/", body)
    return source(answer), answer.json()


def test_another_process_finds_what_one_encoded(sharing: Server, redis: RedisServer) -> None:
    bodies = [prompt_body(new_picture()) for _ in range(2)]
    before = len(redis.names())
    fresh = [answered(sharing, body) for body in bodies]
    assert [where for where, _ in fresh] == ["encoder"] * 2
    wait_for(lambda: len(redis.names()) == before + 4)
    forget_everything(sharing)
    before_redis = embedding_counters(sharing, "vit_t")["redis"]
    assert answered(sharing, bodies[0]) == ("redis", fresh[0][1])
    # The gateway sent only the digest, and no worker asked for the picture in full.
    page = sharing.http.get(f"{sharing.options.url}/metrics").text
    assert value_of(page, "samserve_gateway_pictures_total", outcome="forgotten") == 0
    assert answered(sharing, bodies[0]) == ("memory", fresh[0][1])
    # The other lane's worker takes it from the machine's folder, without Redis.
    automask = {**bodies[0], "points_per_side": 2}
    assert source(sharing.post("/sam/automask/", automask)) == "machine"
    assert answered(sharing, bodies[1]) == ("redis", fresh[1][1])
    assert embedding_counters(sharing, "vit_t")["redis"] == before_redis + 2
    since = Since(sharing.options.metrics_url)
    answered(sharing, bodies[1])
    wait_for(lambda: since("samserve_requests_total", lane="vit_t") == 1)
    page = since.page()
    assert value_of(page, "samserve_embeddings_total", lane="vit_t", source="redis") >= 2
    assert value_of(page, "samserve_redis_total", lane="vit_t", outcome="hit") >= 4


def recovered(server: Server) -> bool:
    """Return whether the worker looks for a new picture in Redis again."""
    before = outcomes(server)
    answered(server, prompt_body(new_picture()))
    return (outcomes(server) - before)["miss"] > 0


def test_whatever_becomes_of_redis(sharing: Server, redis: RedisServer, proxy: Proxy) -> None:
    """Damaged, full, slow or stopped: no answer is wrong, and none fails."""
    names = ("lying", "slow", "gone")
    bodies = {name: prompt_body(new_picture()) for name in names}
    before = len(redis.names())
    fresh = {name: answered(sharing, body)[1] for name, body in bodies.items()}
    wait_for(lambda: len(redis.names()) == before + 6)
    forget_everything(sharing)

    for key in redis.names():
        redis.client.set(key, b"garbage")
    assert answered(sharing, bodies["lying"]) == ("encoder", fresh["lying"])
    assert outcomes(sharing)["damaged"] > 0
    redis.client.flushall()

    # A full Redis cannot store an embedding, but the request is answered.
    redis.client.config_set("maxmemory", "1mb")
    wait_for(lambda: recovered(sharing))
    for _ in range(FAILURES + 1):
        assert answered(sharing, prompt_body(new_picture()))[0] == "encoder"
    wait_for(lambda: outcomes(sharing)["save_failed"] >= FAILURES)
    assert outcomes(sharing)["load_failed"] == 0
    redis.client.config_set("maxmemory", "0")

    proxy.pause_s = 1.0
    assert answered(sharing, bodies["slow"]) == ("encoder", fresh["slow"])
    for _ in range(FAILURES):
        assert answered(sharing, prompt_body(new_picture()))[0] == "encoder"
    assert outcomes(sharing)["load_failed"] >= FAILURES
    assert outcomes(sharing)["skipped_load"] > 0
    proxy.pause_s = 0
    wait_for(lambda: recovered(sharing))

    redis.kill()
    assert answered(sharing, bodies["gone"]) == ("encoder", fresh["gone"])
    for _ in range(FAILURES):
        assert answered(sharing, prompt_body(new_picture()))[0] == "encoder"
    redis.start()
    wait_for(lambda: recovered(sharing))
    url = f"{sharing.options.metrics_url}/metrics"
    page = sharing.http.get(url).text
    for outcome in ("damaged", "load_failed", "save_failed", "skipped_load", "skipped_save"):
        assert value_of(page, "samserve_redis_total", lane="vit_t", outcome=outcome) > 0, outcome
