"""Gives each automask an id, by which its progress is read and by which it can be cancelled.

TorchServe tells a worker nothing of a client that has gone, and tells the gateway nothing of a
worker's progress. Both go through files in a shared folder (`samserve.serving.jobs`).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from samserve.serving import headers
from samserve.serving.jobs import JobFolder

logger = logging.getLogger(__name__)

T = TypeVar("T")

SWEEP_EVERY_S = 60.0
"""How often files without a job under way are looked for, and how old they may become."""


class Jobs:
    """The automasks under way on this machine.

    Args:
        folder: the folder that the workers share with the gateway. Without one (None), there is no
            progress and nothing is cancelled.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = None if folder is None else JobFolder(folder)
        self._owners: dict[str, str] = {}
        self._swept = time.monotonic()
        if self._folder is not None:
            self._folder.sweep((), older_than_s=0)  # of a gateway before this one

    @contextmanager
    def job(self, client: str = "") -> Iterator[dict[str, str]]:
        """Yield the headers that give a request its job id. The job is cancelled after the block.

        If the job cannot be announced to the workers, as on a full disk, it goes without an id:
        it has no progress, and a worker finishes it even if its client goes.
        """
        job_id = secrets.token_hex(16)
        if self._folder is None or not self._begin(self._folder, job_id):
            yield {}
            return
        self._owners[job_id] = client
        try:
            yield {headers.JOB: job_id}
        finally:
            del self._owners[job_id]
            try:
                self._folder.cancel(job_id)
            except OSError as exc:
                logger.warning("The files of an automask could not be removed: %s", exc)

    def _begin(self, folder: JobFolder, job_id: str) -> bool:
        try:
            if time.monotonic() - self._swept >= SWEEP_EVERY_S:
                self._swept = time.monotonic()
                folder.sweep(self._owners, older_than_s=SWEEP_EVERY_S)
            folder.begin(job_id)
        except OSError as exc:
            logger.warning("An automask has no progress and cannot be cancelled: %s", exc)
            return False
        return True

    def progress(self, client: str | None = None) -> dict[str, Any]:
        """Return samapi's `message` and `percent` of the oldest job; -1 percent without one.

        Args:
            client: whose jobs; None: everybody's.
        """
        ids = {job_id for job_id, owner in self._owners.items() if client in (None, owner)}
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
