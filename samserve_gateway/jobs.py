"""Gives each automask an id, by which its progress is read and by which it can be cancelled.

TorchServe tells a worker nothing of a client that has gone, and tells the gateway nothing of a
worker's progress. Both go through files in a shared folder (`samserve.serving.jobs`).
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

from samserve.serving import headers
from samserve.serving.jobs import JobFolder

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Jobs:
    """The automasks under way on this machine.

    Args:
        folder: the folder that the workers share with the gateway. Without one (None), there is no
            progress and nothing is cancelled.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else JobFolder(folder)
        self._owners: dict[str, str] = {}

    @contextmanager
    def job(self, client: str = "") -> Iterator[dict[str, str]]:
        """Yield the headers that give a request its job id. An exception cancels the job."""
        if self._folder is None:
            yield {}
            return
        job_id = secrets.token_hex(16)
        self._owners[job_id] = client
        try:
            yield {headers.JOB: job_id}
        except BaseException:
            try:
                self._folder.cancel(job_id)
            except OSError as exc:
                logger.warning("An automask whose client has gone could not be cancelled: %s", exc)
            raise
        finally:
            del self._owners[job_id]

    def progress(self, client: str | None = None) -> dict[str, Any]:
        """Return samapi's `message` and `percent` of the oldest job; -1 percent without one.

        Args:
            client: whose jobs; None: everybody's.
        """
        own = {job_id for job_id, owner in self._owners.items() if owner == client}
        ids = None if client is None else own
        running = [] if self._folder is None else self._folder.running(ids)
        if not running:
            return {"message": "Nothing is running.", "percent": -1}
        oldest, *others = running
        more = f", and {len(others)} more" if others else ""
        return {
            "message": f"{oldest.lane}: {oldest.done} of {oldest.total} points{more}",
            "percent": 100 * oldest.done // max(1, oldest.total),
        }


async def while_client_waits(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, or cancel it if the client goes first.

    Raises:
        ClientDisconnect: the client has gone.
    """
    doing, leaving = asyncio.create_task(work), asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        doing.cancel()
        leaving.cancel()
        await asyncio.gather(doing, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    """Return when the client has gone. The request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
