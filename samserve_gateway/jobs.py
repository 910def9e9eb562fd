"""Automasks under way: each has an id, by which it is watched, and cancelled when its client goes.

Neither a client that goes away nor how far a worker is reaches the other side through TorchServe;
`samserve.serving.jobs` says how it does.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from samserve.serving.jobs import JobFolder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Jobs:
    """The automasks of this machine.

    Args:
        folder: what the workers share with us; None where there is none, so that nothing can be
            seen or cancelled.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else JobFolder(folder)

    @contextmanager
    def job(self) -> Iterator[dict[str, str]]:
        """The headers that give a request its id; leaving by an exception cancels it."""
        if self._folder is None:
            yield {}
            return
        job_id = secrets.token_hex(16)
        try:
            yield {"Samserve-Job": job_id}
        except BaseException:
            try:
                self._folder.cancel(job_id)
            except OSError as exc:
                logger.warning("An automask that nobody waits for goes on: %s", exc)
            raise

    def progress(self) -> dict[str, Any]:
        """samapi's: a `message`, and `percent` of the oldest run, -1 where there is none."""
        running = [] if self._folder is None else self._folder.running()
        if not running:
            return {"message": "Nothing is running.", "percent": -1}
        oldest, *others = running
        more = f", and {len(others)} more" if others else ""
        return {
            "message": f"{oldest.lane}: {oldest.done} of {oldest.total} points{more}",
            "percent": 100 * oldest.done // max(1, oldest.total),
        }


async def while_client_waits(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives.

    Raises:
        ClientDisconnect: the client went first; `work` was cancelled.
    """
    doing, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Returns when the client has gone. Its body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
