"""This module exchanges the progress and the cancellation of jobs through files.

TorchServe tells a worker nothing when its client disconnects, and tells nobody how far a worker is.
So the gateway gives each automask job an id, and gateway and worker share a folder: the worker
writes the job's progress there, and the gateway writes that the job is cancelled. If a file is
lost, a progress bar misses a number or a worker finishes a useless job. No answer changes.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection
from dataclasses import asdict, dataclass
from pathlib import Path

_ID = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True)
class JobProgress:
    """The progress of a job.

    Attributes:
        lane: the lane whose worker runs it.
        done, total: grid points that are done, and all grid points.
        started: seconds since the epoch.
    """

    lane: str
    done: int
    total: int
    started: float


class JobFolder:
    """The folder with the files of one machine's jobs.

    Args:
        folder: it is created if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def write(self, job_id: str, progress: JobProgress) -> None:
        """Write the progress of a job. An OSError is ignored: it must not fail the job."""
        path = self._path(job_id, "progress")
        unfinished = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            unfinished.write_text(json.dumps(asdict(progress)))
            unfinished.replace(path)

    def cancel(self, job_id: str) -> None:
        """Ask the worker to stop this job.

        Raises:
            OSError: the file cannot be written.
        """
        self._path(job_id, "cancelled").touch()

    def is_cancelled(self, job_id: str) -> bool:
        """Return whether `cancel` was called for this job."""
        return self._path(job_id, "cancelled").exists()

    def running(self, ids: Collection[str] | None = None) -> list[JobProgress]:
        """Return the progress of the running jobs, or of those with these ids, the oldest first."""
        jobs = []
        for path in self._folder.glob("*.progress"):
            if ids is not None and path.stem not in ids:
                continue
            # The job may end while we read, and a foreign file may hold anything.
            with contextlib.suppress(OSError, ValueError, TypeError):
                jobs.append(JobProgress(**json.loads(path.read_bytes())))
        return sorted(jobs, key=lambda progress: progress.started)

    def forget(self, job_id: str) -> None:
        """Remove the files of a job that has ended."""
        for kind in ("progress", "cancelled"):
            with contextlib.suppress(OSError):
                self._path(job_id, kind).unlink()

    def _path(self, job_id: str, kind: str) -> Path:
        if not _ID.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is no id of a job")
        return self._folder / f"{job_id}.{kind}"


def is_job_id(text: str) -> bool:
    """Return whether this text is a job id."""
    return _ID.fullmatch(text) is not None
