"""This module gives memory back to the system after a batch that took much of it.

A worker keeps the memory that it frees (`WORKER_ENVIRONMENT` of the launcher), because new pages
for each request would cost more than the arithmetic. But after the largest picture it would keep a
gigabyte for good.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path

GROWTH = 200 * 2**20
"""Memory is given back when it has grown by so many bytes. Clicks reuse what they have freed, so
they never get there."""

_STATM = Path("/proc/self/statm")


class Memory:
    """The memory of this process. On other systems than Linux with glibc, nothing is done."""

    def __init__(self) -> None:
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._trim: Callable[[int], int] | None = trim if _STATM.exists() else None
        self._settled = self._resident()

    def give_back(self) -> bool:
        """Give back what is free, if much was taken since the last time. Return whether it was."""
        if self._trim is None or self._resident() < self._settled + GROWTH:
            return False
        self._trim(0)
        self._settled = self._resident()
        return True

    def _resident(self) -> int:
        if self._trim is None:
            return 0
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
