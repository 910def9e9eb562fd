"""This module exchanges the progress and the cancellation of jobs through files.

TorchServe tells a worker nothing when its client disconnects, and tells nobody how far a worker is.
So the gateway gives each automask job an id, and gateway and worker share a folder. As long as
somebody waits for the job's answer, the gateway keeps a file `<id>.awaited` there. Without that
file the job is cancelled: its client has gone, or the gateway has ended. The worker writes the
progress to `<id>.progress`. The gateway removes both files when it ends the job, however it ends:
so a worker that was killed, or that never began, leaves none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
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
        """Write the progress of a job, unless it is cancelled.

        An OSError is ignored: it must not fail the job.
        """
        path = self._path(job_id, "progress")
        if self.is_cancelled(job_id):
            return  # the gateway has removed the file
        unfinished = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            unfinished.write_text(json.dumps(asdict(progress)))
            unfinished.replace(path)

    def begin(self, job_id: str) -> None:
        """Say that somebody waits for the answer of this job.

        Raises:
            OSError: the file cannot be written.
        """
        self._path(job_id, "awaited").touch()

    def cancel(self, job_id: str) -> None:
        """Say that nobody waits for this job any more, and remove its files.

        Raises:
            OSError: a file cannot be removed.
        """
        for kind in ("awaited", "progress"):
            self._path(job_id, kind).unlink(missing_ok=True)

    def is_cancelled(self, job_id: str) -> bool:
        """Return whether nobody waits for the answer of this job."""
        return not self._path(job_id, "awaited").exists()

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
        """Remove the progress of a job whose work has ended. The gateway ends the job itself."""
        with contextlib.suppress(OSError):
            self._path(job_id, "progress").unlink()

    def sweep(self, ids: Collection[str], older_than_s: float) -> None:
        """Remove old files of all jobs but those with these ids.

        A worker that is killed while it writes leaves a file that belongs to no job under way.

        Args:
            older_than_s: the age of the files, in seconds since they were written.
        """
        now = time.time()
        for path in self._folder.iterdir():
            name, _, _ = path.name.partition(".")
            if is_job_id(name) and name not in ids:
                # Another process may remove it first. A clock that was set back makes files
                # younger than 0 seconds; those go, too.
                with contextlib.suppress(OSError):
                    age = now - path.stat().st_mtime
                    if age >= older_than_s or age < 0:
                        path.unlink()

    def _path(self, job_id: str, kind: str) -> Path:
        if not _ID.fullmatch(job_id):
            raise ValueError(f"{job_id!r} is no id of a job")
        return self._folder / f"{job_id}.{kind}"


def is_job_id(text: str) -> bool:
    """Return whether this text is a job id."""
    return _ID.fullmatch(text) is not None
