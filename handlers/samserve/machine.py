"""This module tells what the machine offers: processor cores, memory, and a folder in memory."""

from __future__ import annotations

import contextlib
import ctypes
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


def available_memory(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Return the bytes of memory that new processes can take without swapping.

    Returns:
        None if the system does not say, as macOS.

    Args:
        meminfo: the kernel's file about the machine.
        cgroup: the folder with a container's limit and use. The file cache counts as free.
    """
    amounts = []
    with contextlib.suppress(OSError, ValueError, LookupError):
        lines = (line.split() for line in meminfo.read_text().splitlines())
        amounts.append({line[0]: int(line[1]) * 1024 for line in lines}["MemAvailable:"])
    with contextlib.suppress(OSError, ValueError, LookupError):  # no container, or "max"
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        lines = (line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
        cached = {line[0]: int(line[1]) for line in lines}["inactive_file"]
        amounts.append(max(0, limit - used + cached))
    return min(amounts, default=None)


def resident_memory(pid: int) -> int | None:
    """Return the bytes of memory that a process has; None if the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return None


def give_memory_back() -> None:
    """Return memory that this process has freed to the system.

    Only glibc keeps freed memory, and has a function that returns it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def memory_folder() -> Path | None:
    """Return the folder whose files are in memory; None if the system has none."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None
