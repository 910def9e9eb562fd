"""Kills workers that stand still. TorchServe then starts new ones.

Each worker touches a file once a second (`samserve/serving/pulse.py`).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import psutil

SILENT_S = 30.0
"""A worker that has not touched its file for this long is killed. A busy machine delays it by
seconds: the thread that touches the file shares the cores with all workers."""


class Pulses:
    """Watches the files of the workers' pulses.

    Times are taken from our own clock when a file changes, because the system's time may jump.

    Args:
        folder: the folder of the files.
        clock: returns seconds that never jump.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock
        self._seen: dict[Path, tuple[int, float]] = {}
        self._checked = clock()

    def check(self) -> list[int]:
        """Kill the workers that stand still, and return their process ids."""
        now = self._clock()
        if now - self._checked > SILENT_S / 2:
            # We stood still ourselves, perhaps together with the whole machine.
            self._seen.clear()
        self._checked = now
        killed = []
        for path in self._folder.glob("*.pulse"):
            with contextlib.suppress(OSError, ValueError):  # it was removed, or is not a worker's
                changed, pid = path.stat().st_mtime_ns, int(path.stem)
                last, since = self._seen.get(path, (0, now))
                if changed != last:
                    self._seen[path] = (changed, now)
                elif now - since > SILENT_S:
                    if _kill(pid):
                        killed.append(pid)
                    path.unlink()
        self._seen = {path: seen for path, seen in self._seen.items() if path.exists()}
        return killed


def _kill(pid: int) -> bool:
    """Kill a worker. Return False if there is none: it has ended, as at a change of the scale."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        # The kernel gives the id of a process that ended to another one, which is not ours to kill.
        if any("model_service_worker" in part for part in process.cmdline()):
            process.kill()
            return True
    return False
