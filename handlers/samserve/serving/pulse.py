"""A worker process shows that it is alive, and ends itself if a step of its work never ends.

TorchServe waits for a worker's answer for up to two hours, because an automask may take that long.
Until then it sends requests to a worker that hangs. So each worker has a thread that touches a file
every second, `<pid>.pulse`. There are two kinds of faults:

- The whole process stands still: it was stopped, or a call that holds Python's lock never returns.
  Then the file is no longer touched, and the launcher kills the process
  (`samserve_launcher/pulses.py`).
- A step of the work never ends, while other threads run. The thread itself sees that: it writes all
  threads' stacks to the log and ends the process.

TorchServe then starts a new worker.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

EVERY_S = 1.0
"""The interval at which the file is touched."""

STUCK = 70
"""The exit status of a worker that ended itself."""


class Pulse:
    """The pulse of this process. It begins at once.

    Args:
        folder: where the file is; None: there is no file.
        step_s: the longest time in seconds that a step of the work may take.
        end: called when a step takes longer. It must not return.
    """

    def __init__(
        self, folder: Path | None, step_s: float, end: Callable[[float], None] | None = None
    ) -> None:
        self._file = None if folder is None else folder / f"{os.getpid()}.pulse"
        self._step_s = step_s
        self._end = end or _end_process
        self._step_began: float | None = None
        if folder is not None:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        threading.Thread(target=self._beat, name="pulse", daemon=True).start()

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Watch the steps of the work within the block. The first one begins now."""
        self.step()
        try:
            yield
        finally:
            self._step_began = None

    def step(self) -> None:
        """Say that a step of the work has ended and another one begins. Any thread may say so."""
        self._step_began = time.monotonic()

    def _beat(self) -> None:
        while True:
            began = self._step_began
            if began is not None and time.monotonic() - began > self._step_s:
                self._end(self._step_s)
            if self._file is not None:
                # A full disk or a folder that was removed must not end the thread: the launcher
                # kills only a process whose file it has seen.
                with contextlib.suppress(OSError):
                    self._file.touch(mode=0o600)
            time.sleep(EVERY_S)


def _end_process(step_s: float) -> None:
    logger.error(
        "A step of the work has taken more than %g s (step_s in config/models). The worker ends; "
        "the stacks of its threads follow.",
        step_s,
    )
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    os._exit(STUCK)
