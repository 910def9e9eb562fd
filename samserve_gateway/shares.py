"""Gives each client its share of the gateway: so many requests at once, and so many a minute.

A client is who has a key, or else an address (`keyring.py`). The requests of a minute are counted
in Redis if several gateways share one; requests at once are counted by each gateway alone.

A gateway that only its own machine reaches, and that wants no keys, has no such limits: there, all
clients have one address.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

from limits import RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import FixedWindowRateLimiter
from limits.errors import StorageError

from samserve.errors import TooManyRequests

logger = logging.getLogger(__name__)

REQUESTS_AT_ONCE = 16
"""A script with 16 connections keeps two workers' batches full. A queue has room for many such
clients."""

REQUESTS_A_MINUTE = 1200
"""20 a second: more than anybody clicks, and about half of what two cores answer."""

MAX_COUNTED = 1000
"""Clients counted at once. Beyond it, the one that has been quiet for longest is forgotten, so that
requests from ever new addresses take no memory."""

REDIS_TIMEOUT_S = 0.05
"""An answer takes less than a millisecond. A slow Redis must not slow a click down."""

REDIS_PAUSE_S = 10.0
"""How long a Redis that failed is left alone."""


class Counters:
    """Counts what each client does in a minute, in memory or in Redis.

    Args:
        redis_url: the Redis that several gateways share; None: this gateway counts alone. If Redis
            is slow or gone, this gateway counts alone, too.
    """

    def __init__(self, redis_url: str | None = None) -> None:
        self._memory = FixedWindowRateLimiter(MemoryStorage())
        self._counted: OrderedDict[tuple[str, str], RateLimitItemPerMinute] = OrderedDict()
        self._shared = self._pool = None
        self._paused_until = -math.inf
        if redis_url is not None:
            # Imported only where a Redis is configured.
            from redis.asyncio import ConnectionPool

            self._pool = ConnectionPool.from_url(redis_url)
            storage = RedisStorage(
                redis_url,
                wrap_exceptions=True,
                implementation="redispy",
                connection_pool=self._pool,  # type: ignore[arg-type]
            )
            self._shared = FixedWindowRateLimiter(storage)

    async def close(self) -> None:
        """Close the connections to Redis."""
        if self._pool is not None:
            await self._pool.aclose()

    async def hit(self, what: str, client: str, most: int) -> int:
        """Count once, and return 0; or the seconds to wait, if the client did it `most` times."""
        item = RateLimitItemPerMinute(most, namespace="samserve")
        if self._shared is not None and time.monotonic() >= self._paused_until:
            try:
                return await asyncio.wait_for(
                    _hit(self._shared, item, what, client), REDIS_TIMEOUT_S
                )
            except (StorageError, asyncio.TimeoutError) as error:
                self._paused_until = time.monotonic() + REDIS_PAUSE_S
                logger.warning(
                    "Redis does not count requests (%s): this gateway counts alone for %d s.",
                    type(getattr(error, "storage_error", error)).__name__,
                    REDIS_PAUSE_S,
                )
        await self._make_room(what, client, item)
        return await _hit(self._memory, item, what, client)

    async def _make_room(self, what: str, client: str, item: RateLimitItemPerMinute) -> None:
        self._counted[what, client] = item
        self._counted.move_to_end((what, client))
        if len(self._counted) > MAX_COUNTED:
            oldest, its_item = self._counted.popitem(last=False)
            await self._memory.clear(its_item, *oldest)


class Shares:
    """The limits of each client.

    Args:
        at_once: most requests under way of one client; 0: any number.
        a_minute: most requests a minute of one client; 0: any number.
    """

    def __init__(self, counters: Counters, at_once: int, a_minute: int) -> None:
        self._counters = counters
        self._at_once = at_once
        self._a_minute = a_minute
        self._under_way: Counter[str] = Counter()

    async def count(self, client: str) -> None:
        """Count a request of this client.

        Raises:
            TooManyRequests: it has had its requests of this minute.
        """
        if not self._a_minute:
            return
        wait_s = await self._counters.hit("request", client, self._a_minute)
        if wait_s:
            raise TooManyRequests(
                f"This client may send {self._a_minute} requests a minute. "
                f"Try again in {wait_s} s.",
                wait_s,
            )

    @contextmanager
    def under_way(self, client: str) -> Iterator[None]:
        """Count a request as under way within the block.

        Raises:
            TooManyRequests: the client has as many under way as it may have.
        """
        if self._at_once and self._under_way[client] >= self._at_once:
            raise TooManyRequests(
                f"This client has {self._at_once} requests under way, which is the limit. Wait "
                "for an answer before you send more.",
                1,
            )
        self._under_way[client] += 1
        try:
            yield
        finally:
            self._under_way[client] -= 1
            if not self._under_way[client]:
                del self._under_way[client]  # so that the table holds only who is here


async def _hit(
    limiter: FixedWindowRateLimiter, item: RateLimitItemPerMinute, what: str, client: str
) -> int:
    if await limiter.hit(item, what, client):
        return 0
    stats = await limiter.get_window_stats(item, what, client)
    return max(1, math.ceil(stats.reset_time - time.time()))
