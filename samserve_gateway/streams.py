"""A stream's place in the queue of its lane, kept until TorchServe has ended the stream.

TorchServe does not tell the worker that a client has gone. The worker notices a cancelled job after
its current step. If the next request were let in before that, requests whose clients leave at once
would fill TorchServe's queue.
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from types import TracebackType

import aiohttp
from starlette.requests import ClientDisconnect

from .queues import LaneQueue
from .torchserve_answers import TorchServeError
from .turns import Turn

END_TIMEOUT_S = 60.0
"""Longest wait for the end of a stream whose client has gone."""

CLIENT_HAS_GONE = (asyncio.CancelledError, GeneratorExit, ClientDisconnect)
"""What ends a stream whose client has gone, before or after its first event."""


class StreamPlace:
    """The place of one stream; it is taken within `async with`, when the turn has come."""

    def __init__(self, queue: LaneQueue, turn: Turn) -> None:
        self._queue = queue
        self._turn = turn
        self._responses = AsyncExitStack()
        self._opening: asyncio.Task[aiohttp.ClientResponse] | None = None

    async def __aenter__(self) -> StreamPlace:
        return self

    async def open(
        self, response: AbstractAsyncContextManager[aiohttp.ClientResponse]
    ) -> aiohttp.ClientResponse:
        """Open a response of TorchServe, and return it. It is closed with the place."""
        self._opening = asyncio.create_task(self._responses.enter_async_context(response))
        return await asyncio.shield(self._opening)

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._queue.throttled and isinstance(error, CLIENT_HAS_GONE):
            self._queue.keep(self._end_later())
        else:
            await self._end(kind, error, traceback)

    async def _end_later(self) -> None:
        try:
            # Whatever happens to the stream, nobody waits for it.
            with contextlib.suppress(TorchServeError, aiohttp.ClientError, asyncio.TimeoutError):
                await asyncio.wait_for(self._read_on(), END_TIMEOUT_S)
        finally:
            await self._end()

    async def _read_on(self) -> None:
        if self._opening is not None:
            response = await self._opening
            async for _ in response.content.iter_any():
                pass

    async def _end(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            if self._opening is not None and not self._opening.done():
                self._opening.cancel()
                await asyncio.gather(self._opening, return_exceptions=True)
            await self._responses.__aexit__(kind, error, traceback)
        finally:
            self._queue.leave(self._turn)
