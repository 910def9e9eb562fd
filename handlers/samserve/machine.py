"""This module tells what the machine offers: processor cores, and a folder in memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def usable_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may run on, and may use up; macOS does not tell, so there it is all.

    Args:
        cpu_max: where a container's limit stands, as "<microseconds> <of microseconds>" or "max
            <…>": more threads than that would only be throttled together.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no container; or "max": no limit
        quota, period = map(int, cpu_max.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def memory_folder() -> Path | None:
    """Where files are kept in memory, on a system that has such a folder."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None
