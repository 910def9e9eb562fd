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
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

_ID = re.compile(r"[0-9a-f]{32}")
_REPORT_EVERY_S = 0.2


@dataclass(frozen=True)
class Progress:
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


class RunFolder:
    """What is known of the runs of one machine.

    Args:
        folder: made if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def write(self, run_id: str, progress: Progress) -> None:
        """Say how far a run is. What cannot be written is not known, and that is all."""
        path = self._path(run_id, "progress")
        unfinished = path.with_suffix(f".{os.getpid()}")
        with contextlib.suppress(OSError):
            unfinished.write_text(json.dumps(asdict(progress)))
            unfinished.replace(path)

    def cancel(self, run_id: str) -> None:
        """Nobody wants this run any more.

        Raises:
            OSError: it cannot be said.
        """
        self._path(run_id, "cancelled").touch()

    def is_cancelled(self, run_id: str) -> bool:
        """Whether somebody said so."""
        return self._path(run_id, "cancelled").exists()

    def running(self) -> list[Progress]:
        """The runs under way, the oldest first."""
        found = []
        for path in self._folder.glob("*.progress"):
            # It may have ended since, and another's file may be anything.
            with contextlib.suppress(OSError, ValueError, TypeError):
                found.append(Progress(**json.loads(path.read_bytes())))
        return sorted(found, key=lambda progress: progress.started)

    def forget(self, run_id: str) -> None:
        """The run has ended."""
        for kind in ("progress", "cancelled"):
            with contextlib.suppress(OSError):
                self._path(run_id, kind).unlink()

    def _path(self, run_id: str, kind: str) -> Path:
        if not _ID.fullmatch(run_id):
            raise ValueError(f"{run_id!r} is no id of a run")
        return self._folder / f"{run_id}.{kind}"


def is_run_id(text: str) -> bool:
    """Whether this may name a run."""
    return _ID.fullmatch(text) is not None


class Run:
    """One piece of work, as whoever does it sees it; safe between threads.

    Args:
        deadline_s: seconds from now that it may take; None for as long as it needs.
        cancelled: whether nobody wants it any more; asked between batches.
        report: told (done, total), in order, now and then and at the end.
    """

    def __init__(
        self,
        *,
        deadline_s: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s
        self._cancelled = cancelled
        self._report = report
        self._lock = threading.Lock()
        self._reported = -_REPORT_EVERY_S
        self.done = 0
        self.total = 0
        self.stopped: Literal["cancelled", "timeout"] | None = None
        """Why it did not go on to its end."""

    def begin(self, total: int) -> None:
        """So much is to be done."""
        self.total = total
        self._report(0, total)

    def may_go_on(self) -> bool:
        """Whether to begin another batch."""
        if self.stopped is None:
            if self._cancelled():
                self.stopped = "cancelled"
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self.stopped = "timeout"
        return self.stopped is None

    def advance(self, count: int) -> None:
        """So much more is done."""
        with self._lock:
            self.done += count
            now = time.monotonic()
            if self.done == self.total or now - self._reported >= _REPORT_EVERY_S:
                self._reported = now
                self._report(self.done, self.total)
