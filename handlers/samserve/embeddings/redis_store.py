"""Byte strings that several machines share, in a Redis: what `store.py` is to one machine.

Whatever Redis does, nothing is raised, and nobody waits for it for long:

    load   takes LOAD_S at most, and misses then. A thread asks, for the time-out of a socket
           bounds neither the look-up of a name nor an answer that comes a few bytes at a time.
    save   returns at once. Another thread writes; what it cannot keep up with is dropped.

After FAILURES in a row, Redis is left alone for REST_S; then one may try whether it works again.
Loading and saving do so each for itself: a Redis that is full can still be read.

An entry carries a checksum over its key and its content, so that whatever else lies there is a
miss. How long entries stay is Redis's own business (`maxmemory-policy allkeys-lru`), a day at
most. Does not guard against people who may write to that Redis: it belongs on a network of its
own, behind a password.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
import zlib
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotInTime
from typing import Literal

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger(__name__)

CONNECT_S = 0.1
READ_S = 0.25
"""The longest silence within a load."""
LOAD_S = 0.5
"""The longest load in all: the encoder takes about as long."""
WRITE_S = 2.0
"""The longest save; nobody waits for it."""

FAILURES = 3
REST_S = 10.0

MAX_WAITING = 16
"""Saves that wait, some 4 MB each."""

MAX_BYTES = 2**24
"""What is longer is none of ours, and not read to its end."""

KEPT_S = 24 * 60 * 60

_PREFIX = "samserve:"
_HEADER = struct.Struct(">8sI")  # magic, checksum
_MAGIC = b"samserv\x01"  # ends in the format's version

Outcome = Literal[
    "hit",
    "miss",
    "saved",
    "load_failed",
    "save_failed",
    "damaged",  # bytes that are not what was saved
    "skipped_load",  # left alone for a while
    "skipped_save",
    "dropped",  # too many saves were waiting
]


class RedisStore:
    """Entries in one Redis.

    Args:
        url: as `redis://:password@host:6379/0`; `rediss://` for TLS.

    Raises:
        ValueError: `url` is none of Redis's.
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
        """How often each `Outcome` happened."""

    def load(self, key: str) -> bytes | None:
        """What was saved under `key`, or None."""
        if not self._loads.lets_through():
            self._count("skipped_load")
            return None
        asked = self._reader.submit(self._read, key)
        try:
            error = asked.exception(LOAD_S)
        except NotInTime:
            error = TimeoutError(f"no answer within {LOAD_S:g} s")
            asked.cancel()  # if it has not begun; else its thread sees it through by itself
        if error is not None:
            self._count("load_failed")
            self._loads.failed(error)
            return None
        value = asked.result()
        content = _opened(key, value)
        if content is None and value:
            self._count("damaged")
            self._loads.failed(ValueError("an entry is damaged, or somebody else's"))
            return None
        self._count("miss" if content is None else "hit")
        self._loads.worked()
        return content

    def save(self, key: str, payload: bytes) -> None:
        """Keeps `payload` under `key` if possible; some time after this returns."""
        if not self._room.acquire(blocking=False):
            self._count("dropped")
        elif not self._saves.lets_through():
            self._room.release()
            self._count("skipped_save")
        else:
            self._writer.submit(self._write, key, payload).add_done_callback(self._written)

    def _read(self, key: str) -> bytes:
        """What lies there, or nothing."""
        value = self._reading.getrange(_PREFIX + key, 0, MAX_BYTES)
        return value if isinstance(value, bytes) else b""

    def _write(self, key: str, payload: bytes) -> None:
        self._writing.set(_PREFIX + key, _sealed(key, payload), ex=KEPT_S)

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
    """Keeps what does not work out of the way; safe between threads.

    Args:
        doing: what, for the log.
    """

    def __init__(self, doing: str) -> None:
        self._doing = doing
        self._lock = threading.Lock()
        self._failures = 0
        self._next_try = 0.0

    def lets_through(self) -> bool:
        """Whether to try; while it does not work, one may, every REST_S."""
        with self._lock:
            if self._failures < FAILURES:
                return True
            now = time.monotonic()
            if now < self._next_try:
                return False
            self._next_try = now + REST_S
            return True

    def worked(self) -> None:
        with self._lock:
            was_resting = self._failures >= FAILURES
            self._failures = 0
        if was_resting:
            logger.warning("Redis: %s works again.", self._doing)

    def failed(self, error: BaseException) -> None:
        with self._lock:
            self._failures += 1
            self._next_try = time.monotonic() + REST_S
            begins_to_rest = self._failures == FAILURES
        if begins_to_rest:
            logger.warning(
                "Redis: %s failed %d times in a row, and is tried every %g s from now on. "
                "Answers take longer, and are the same. The last failure: %s: %s",
                *(self._doing, FAILURES, REST_S, type(error).__name__, error),
            )


def _client(url: str, timeout_s: float) -> redis.Redis:
    return redis.Redis.from_url(
        url,
        socket_connect_timeout=CONNECT_S,
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),  # computing is what we do instead
        protocol=2,
        driver_info=None,  # a round trip less, and older servers do not know it
    )


def _sealed(key: str, payload: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, _checksum(key, payload)) + payload


def _opened(key: str, value: bytes) -> bytes | None:
    """The payload; None where these are not the bytes that were saved under `key`."""
    content = value[_HEADER.size :]
    header = _HEADER.pack(_MAGIC, _checksum(key, content))
    return content if value[: _HEADER.size] == header else None


def _checksum(key: str, content: bytes) -> int:
    return zlib.crc32(content, zlib.crc32(key.encode()))
