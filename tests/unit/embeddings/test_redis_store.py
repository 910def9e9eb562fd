"""The Redis store with a real Redis: working, stopped, full, slow, and with damaged entries."""

from __future__ import annotations

import logging
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from samserve.embeddings import redis_store
from samserve.embeddings.redis_store import FAILURES, MAX_BYTES, MAX_WAITING, RedisStore
from tests.support.paths import ROOT
from tests.support.redis import LOOPBACK, Proxy, RedisServer, running_redis

KEY = "0123456789abcdef-vit_t"
EMBEDDING = random.Random(0).randbytes(4_194_320)
EMBEDDING_OF_SAM_2 = random.Random(1).randbytes(16_777_232)


@pytest.fixture(autouse=True)
def patience(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the timeouts for a busy machine, except in the tests of slowness."""
    if request.cls is not TestSlow:
        for name in ("CONNECT_S", "READ_S", "LOAD_S", "WRITE_S"):
            monkeypatch.setattr(redis_store, name, 20.0)


@pytest.fixture(scope="module")
def module_redis() -> Iterator[RedisServer]:
    with running_redis() as server:
        yield server


@pytest.fixture
def server(module_redis: RedisServer) -> RedisServer:
    module_redis.client.flushall()
    return module_redis


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    way = Proxy(server.port)
    yield way
    way.close()


def saved(store: RedisStore, key: str, payload: bytes) -> str:
    """Save an entry, and return the outcome once it is counted."""
    before = dict(store.outcomes)
    store.save(key, payload)
    wait_for(lambda: dict(store.outcomes) != before)
    [outcome] = [name for name, count in store.outcomes.items() if count != before.get(name, 0)]
    return outcome


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def break_down(store: RedisStore) -> None:
    """Let loading fail until the store no longer tries."""
    for _ in range(FAILURES):
        assert store.load(KEY) is None
    assert store.outcomes["load_failed"] == FAILURES


@pytest.mark.parametrize(
    "payload",
    [b"", b"x", EMBEDDING, EMBEDDING_OF_SAM_2],
    ids=["none", "little", "embedding", "embedding of SAM 2"],
)
def test_what_was_saved_comes_back(server: RedisServer, payload: bytes) -> None:
    store = RedisStore(server.url)
    assert store.load(KEY) is None
    assert saved(store, KEY, payload) == "saved"
    assert store.load(KEY) == payload
    assert store.outcomes == {"miss": 1, "saved": 1, "hit": 1}


def test_another_process_finds_it(server: RedisServer) -> None:
    saved(RedisStore(server.url), KEY, b"payload")
    code = (
        "import sys; from samserve.embeddings.redis_store import RedisStore;"
        "print(RedisStore(sys.argv[1]).load(sys.argv[2]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, server.url, KEY], cwd=ROOT, capture_output=True, check=True
    )
    assert result.stdout.strip() == b"b'payload'"


def test_it_does_not_stay_for_ever(server: RedisServer) -> None:
    saved(RedisStore(server.url), KEY, b"payload")
    [name] = server.names()
    assert name == f"samserve:{KEY}"
    assert 0 < server.client.ttl(name) <= 24 * 60 * 60


def test_no_redis_url() -> None:
    with pytest.raises(ValueError, match="scheme"):
        RedisStore("localhost:6379")


class TestWrong:
    @pytest.mark.parametrize(
        "spoil",
        [
            lambda whole: b"garbage",
            lambda whole: whole[:-1],
            lambda whole: whole + b"\0",
            lambda whole: whole[:100] + bytes([whole[100] ^ 1]) + whole[101:],
            lambda whole: bytes(len(whole)),
            lambda whole: bytes(2 * MAX_BYTES),
            lambda whole: whole[:11],
        ],
        ids=["garbage", "cut", "longer", "a bit", "zeros", "huge", "no header"],
    )
    def test_is_a_miss_and_mended(
        self, server: RedisServer, spoil: Callable[[bytes], bytes]
    ) -> None:
        store = RedisStore(server.url)
        saved(store, KEY, b"x" * 5000)
        [name] = server.names()
        whole = server.client.get(name)
        assert isinstance(whole, bytes)
        server.client.set(name, spoil(whole))
        assert store.load(KEY) is None
        assert store.outcomes["damaged"] == 1
        saved(store, KEY, b"x" * 5000)
        assert store.load(KEY) == b"x" * 5000

    def test_of_another_key(self, server: RedisServer) -> None:
        store = RedisStore(server.url)
        saved(store, KEY, b"payload")
        server.client.copy(f"samserve:{KEY}", "samserve:other")
        assert store.load("other") is None
        assert store.outcomes["damaged"] == 1

    def test_of_another_type(self, server: RedisServer) -> None:
        server.client.rpush(f"samserve:{KEY}", "a list")
        store = RedisStore(server.url)
        assert store.load(KEY) is None
        assert store.outcomes["load_failed"] == 1
        assert saved(store, KEY, b"payload") == "saved"
        assert store.load(KEY) == b"payload"

    @pytest.mark.parametrize("said", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$x\r\n", b":1\r\n"])
    def test_something_else_answers(self, said: bytes) -> None:
        """At Redis's address, another server sends bytes that are no answer of Redis to a GET."""
        with socket.create_server((LOOPBACK, 0)) as listener:

            def talk() -> None:
                with suppress(OSError):
                    while True:
                        client, _ = listener.accept()
                        with client:
                            while client.recv(2**16):
                                client.sendall(said)

            threading.Thread(target=talk, daemon=True).start()
            store = RedisStore(f"redis://{LOOPBACK}:{listener.getsockname()[1]}")
            assert [store.load(KEY) for _ in range(FAILURES)] == [None] * FAILURES
            assert store.outcomes["hit"] == 0
            listener.shutdown(socket.SHUT_RDWR)


class TestGone:
    def test_it_is_left_alone_and_found_again(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(redis_store, "REST_S", 0.5)
        with running_redis() as server:
            store = RedisStore(server.url)
            saved(store, KEY, b"payload")
            server.kill()
            break_down(store)
            assert store.load(KEY) is None
            assert store.outcomes["skipped_load"] == 1
            for _ in range(FAILURES):
                assert saved(store, KEY, b"payload") == "save_failed"
            assert saved(store, KEY, b"payload") == "skipped_save"
            server.start()
            wait_for(lambda: saved(store, KEY, b"payload") == "saved")
            wait_for(lambda: store.load(KEY) == b"payload")
        said = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert [text.split(" in a row")[0].split(".")[0] for text in said] == [
            f"Redis: loading failed {FAILURES} times",
            f"Redis: saving failed {FAILURES} times",
            "Redis: saving works again",
            "Redis: loading works again",
        ]

    def test_only_one_tries(self, monkeypatch: pytest.MonkeyPatch) -> None:
        breaker = redis_store._Breaker("trying")
        for _ in range(FAILURES):
            assert breaker.allows()
            breaker.failed(OSError())
        assert not breaker.allows()
        monkeypatch.setattr(time, "monotonic", lambda: float("1e9"))
        assert [breaker.allows() for _ in range(3)] == [True, False, False]
        breaker.worked()
        assert all(breaker.allows() for _ in range(3))

    def test_no_password_in_the_log(self, caplog: pytest.LogCaptureFixture) -> None:
        with running_redis("--requirepass", "right") as server:
            store = RedisStore(server.url.replace("//", "//:wrong-secret@"))
            break_down(store)
            assert "failed" in caplog.text
            assert "secret" not in caplog.text
            welcome = RedisStore(server.url.replace("//", "//:right@"))
            saved(welcome, KEY, b"payload")
            assert welcome.load(KEY) == b"payload"


class TestFull:
    def test_without_eviction_it_can_still_be_read(self) -> None:
        options = ("--maxmemory", "12mb", "--maxmemory-policy", "noeviction")
        with running_redis(*options) as server:
            store = RedisStore(server.url)
            outcomes = [saved(store, f"{KEY}{i}", EMBEDDING) for i in range(4 + FAILURES)]
            assert outcomes[0] == "saved"
            assert outcomes.count("save_failed") == FAILURES
            assert outcomes[-1] == "skipped_save"
            assert store.load(f"{KEY}0") == EMBEDDING

    def test_with_eviction_the_newest_stay(self) -> None:
        options = ("--maxmemory", "24mb", "--maxmemory-policy", "allkeys-lru")
        with running_redis(*options) as server:
            store = RedisStore(server.url)
            assert {saved(store, f"{KEY}{i}", EMBEDDING) for i in range(8)} == {"saved"}
            assert store.load(f"{KEY}7") == EMBEDDING
            assert store.load(f"{KEY}0") is None


class TestSlow:
    def test_silence(self, server: RedisServer, proxy: Proxy) -> None:
        store = RedisStore(proxy.url)
        saved(store, KEY, b"payload")
        proxy.pause_s = 4 * redis_store.READ_S
        break_down(store)
        proxy.pause_s = 0
        assert store.load(KEY) is None
        assert store.outcomes["skipped_load"] == 1

    def test_a_little_at_a_time(self, server: RedisServer, proxy: Proxy) -> None:
        """Bytes keep arriving, but too slowly."""
        saved(RedisStore(server.url), KEY, EMBEDDING)
        proxy.pause_s = redis_store.READ_S / 4
        store = RedisStore(proxy.url)
        assert store.load(KEY) is None
        assert store.outcomes == {"load_failed": 1}

    def test_nobody_waits_for_a_save(
        self, monkeypatch: pytest.MonkeyPatch, server: RedisServer, proxy: Proxy
    ) -> None:
        monkeypatch.setattr(redis_store, "WRITE_S", 60.0)
        proxy.pause_s = float("inf")
        store = RedisStore(proxy.url)
        for i in range(MAX_WAITING + 5):
            store.save(f"{KEY}{i}", b"payload")
        assert store.outcomes == {"dropped": 5}
        proxy.close()
        wait_for(lambda: store.outcomes["save_failed"] == MAX_WAITING)
