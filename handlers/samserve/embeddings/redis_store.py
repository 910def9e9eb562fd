"""This module keeps byte strings in a Redis that several machines share.

No error of Redis is raised, and no request waits long for Redis:

    load   takes at most LOAD_S, and then misses. It runs in a separate thread, because a socket's
           timeout bounds neither a DNS look-up nor an answer that arrives a few bytes at a time.
    save   returns at once. A separate thread writes. If too many saves wait, more are dropped.

After FAILURES failures in a row, Redis is not used for REST_S seconds. Then one operation tests it.
Loads and saves are counted separately, because a Redis that is full can still be read.

An entry has a checksum of its key and payload (`entry.py`), so any other bytes under a key are a
miss. Redis removes entries by its `maxmemory-policy` (`allkeys-lru`), after a day at the latest.
Nothing here guards against people who can write to that Redis: it belongs in a private network,
with a password.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from .entry import REDIS_FORMAT

logger = logging.getLogger(__name__)

CONNECT_S = 0.1
READ_S = 0.25
"""The longest wait for the next bytes in a load."""
LOAD_S = 0.5
"""The longest load. The encoder takes about as long."""
WRITE_S = 2.0
"""The longest save. No request waits for it."""

FAILURES = 3
REST_S = 10.0

MAX_WAITING = 16
"""The largest number of saves that wait, about 4 MB each, and 17 MB with SAM 2."""

MAX_BYTES = 2**25
"""The most bytes that are read of an entry. All entries of this package are shorter: SAM 2's have
16,777,232 bytes besides the digest."""

KEPT_S = 24 * 60 * 60

_PREFIX = "samserve:"

Outcome = Literal[
    "hit",
    "miss",
    "saved",
    "load_failed",
    "save_failed",
    "damaged",  # the bytes under the key are no entry of it
    "skipped_load",  # not tried, after FAILURES in a row
    "skipped_save",
    "dropped",  # too many saves were waiting
]


class RedisStore:
    """Entries in one Redis.

    Args:
        url: such as `redis://:password@host:6379/0`; `rediss://` for TLS.

    Attributes:
        outcomes: the number of operations by `Outcome`.

    Raises:
        ValueError: `url` is no URL of a Redis.
    """

    def __init__(self, url: str) -> None:
        self._reading = _client(url, READ_S)
        self._writing = _client(url, WRITE_S)
        self._reader = ThreadPoolExecutor(1, "redis-load")
        self._writer = ThreadPoolExecutor(1, "redis-save")
        self._loads = _Breaker("loading")
        self._saves = _Breaker("saving")
        self._room = threading.BoundedSemaphore(MAX_WAITING)
        self._counting = threading.Lock()
        self.outcomes: Counter[str] = Counter()

    def load(self, key: str) -> bytes | None:
        """Return the payload that was saved under `key`, or None."""
        if not self._loads.allows():
            self._count("skipped_load")
            return None
        answer = self._reader.submit(self._read, key)
        try:
            error = answer.exception(LOAD_S)
        except NotInTime:
            error = TimeoutError(f"no answer within {LOAD_S:g} s")
            answer.cancel()  # a load that has begun is finished by its thread
        if error is not None:
            self._count("load_failed")
            self._loads.failed(error)
            return None
        value = answer.result()
        content = REDIS_FORMAT.unseal(key, value)
        if content is None and value:
            self._count("damaged")
            self._loads.failed(ValueError("an entry is damaged, or another program wrote it"))
            return None
        self._count("miss" if content is None else "hit")
        self._loads.worked()
        return content

    def save(self, key: str, payload: bytes) -> None:
        """Save `payload` under `key` if possible, some time after this method returns."""
        if not self._room.acquire(blocking=False):
            self._count("dropped")
        elif not self._saves.allows():
            self._room.release()
            self._count("skipped_save")
        else:
            self._writer.submit(self._write, key, payload).add_done_callback(self._written)

    def _read(self, key: str) -> bytes:
        """Return the bytes under `key`, or b"" if there are none."""
        value = self._reading.getrange(_PREFIX + key, 0, MAX_BYTES)
        return value if isinstance(value, bytes) else b""

    def _write(self, key: str, payload: bytes) -> None:
        self._writing.set(_PREFIX + key, REDIS_FORMAT.seal(key, payload), ex=KEPT_S)

    def _written(self, saving: Future[None]) -> None:
        self._room.release()
        error = saving.exception()
        if error is None:
            self._count("saved")
            self._saves.worked()
        else:
            self._count("save_failed")
            self._saves.failed(error)

    def _count(self, outcome: Outcome) -> None:
        with self._counting:
            self.outcomes[outcome] += 1


class _Breaker:
    """A circuit breaker: stops an operation that keeps failing; safe between threads.

    Args:
        operation: the name of the operation in the log.
    """

    def __init__(self, operation: str) -> None:
        self._operation = operation
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try = 0.0

    def allows(self) -> bool:
        """Return whether to try the operation: after FAILURES only once per REST_S."""
        with self._lock:
            if self._failures < FAILURES:
                return True
            now = time.monotonic()
            if now < self._next_try:
                return False
            self._next_try = now + REST_S
            return True

    def worked(self) -> None:
        """Note that the operation succeeded."""
        with self._lock:
            was_resting = self._failures >= FAILURES
            self._failures = 0
        if was_resting:
            logger.warning("Redis: %s works again.", self._operation)

    def failed(self, error: BaseException) -> None:
        """Note that the operation failed."""
        with self._lock:
            self._failures += 1
            self._next_try = time.monotonic() + REST_S
            begins_to_rest = self._failures == FAILURES
        if begins_to_rest:
            logger.warning(
                "Redis: %s failed %d times in a row, and is now tried every %g s only. "
                "Answers take longer, but are the same. The last failure: %s: %s",
                *(self._operation, FAILURES, REST_S, type(error).__name__, error),
            )


def _client(url: str, timeout_s: float) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),  # no retries: encoding the image is the alternative
        protocol=2,
        driver_info=None,  # saves a round trip, and older servers do not know the command
    )
