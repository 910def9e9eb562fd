"""This module gives memory back to the system after a batch that took much of it.

A worker keeps the memory that it frees (`WORKER_ENVIRONMENT` of the launcher), because new pages
for each request would cost more than the arithmetic. But after the largest picture it would keep a
gigabyte for good.
"""

from __future__ import annotations

import os

from samserve.machine import give_memory_back, resident_memory

GROWTH = 200 * 2**20
"""Memory is given back when it has grown by so many bytes. Clicks reuse what they have freed, so
they never get there."""


class Memory:
    """The memory of this process. If the system does not say how much it is, nothing is done."""

    def __init__(self) -> None:
        self._settled = resident_memory(os.getpid())

    def give_back(self) -> bool:
        """Give back what is free, if much was taken since the last time. Return whether it was."""
        now = resident_memory(os.getpid())
        if now is None or self._settled is None or now < self._settled + GROWTH:
            return False
        give_memory_back()
        self._settled = resident_memory(os.getpid())
        return True
