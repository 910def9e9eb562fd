"""This module tells what the machine offers: processor cores, and a folder in memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def usable_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Return the number of processor cores that this process may use.

    macOS has no such limit for a process, so there it is the number of all cores.

    Args:
        cpu_max: the file with a container's limit, as "<microseconds> <of microseconds>" or "max
            <…>". The kernel would throttle more threads than that.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # there is no container, or the limit is "max"
        quota, period = map(int, cpu_max.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def memory_folder() -> Path | None:
    """Return the folder whose files are in memory; None if the system has none."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None
