"""Work that takes a while: how far it is, and whether it may go on.

TorchServe neither tells a worker that its client has gone nor anybody how far a worker is. So the
gateway gives each automask an id, and the two talk about it by files in a folder that they share:
the worker writes how far it is, the gateway that nobody wants it any more. A lost file costs a
number on a progress bar, or work for nobody; never an answer.

Knows neither HTTP nor TorchServe, nor what the work is.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class JobProgress:
    """How far a run is.

    Attributes:
        lane: who works on it.
        done, total: points of the automask's grids.
        started: seconds since the epoch.
    """

    lane: str
    done: int
    total: int
    started: float


class JobFolder:
    """What is known of the runs of one machine.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def write(self, job_id: str, progress: JobProgress) -> None:
        """Say how far a run is. What cannot be written is not known, and that is all."""
        path = self._path(job_id, "progress")
        unfinished = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            unfinished.write_text(json.dumps(asdict(progress)))
            unfinished.replace(path)

    def cancel(self, job_id: str) -> None:
        """Nobody wants this run any more.

        Raises:
            OSError: it cannot be said.
        """
        self._path(job_id, "cancelled").touch()

    def is_cancelled(self, job_id: str) -> bool:
        """Whether somebody said so."""
        return self._path(job_id, "cancelled").exists()

    def running(self) -> list[JobProgress]:
        """The runs under way, the oldest first."""
        found = []
        for path in self._folder.glob("*.progress"):
            # It may have ended since, and another's file may be anything.
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(JobProgress(**json.loads(path.read_bytes())))
        return sorted(found, key=lambda progress: progress.started)

    def forget(self, job_id: str) -> None:
        """The run has ended."""
        for kind in ("progress", "cancelled"):
            with contextlib.suppress(OSError):
                self._path(job_id, kind).unlink()

    def _path(self, job_id: str, kind: str) -> Path:
        if not _ID.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is no id of a run")
        return self._folder / f"{job_id}.{kind}"


def is_job_id(text: str) -> bool:
    """Whether this may name a run."""
    return _ID.fullmatch(text) is not None
