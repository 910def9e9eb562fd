"""This module times the steps of an answer for the HTTP header `Server-Timing`.

Source: W3C Server Timing, https://www.w3.org/TR/server-timing/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ServerTiming:
    """The steps of one answer with their times, in the order of the work.

    Args:
        observe: called once with the name and the seconds of each step.
    """

    def __init__(self, observe: Callable[[str, float], None] = lambda name, seconds: None) -> None:
        self._observe = observe
        self._steps: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Time the block. The texts that it appends to the list become the step's description."""
        descriptions: list[str] = []
        start = time.perf_counter()
        yield descriptions
        self.add(name, time.perf_counter() - start, *descriptions)

    def add(self, name: str, seconds: float, *descriptions: str) -> None:
        """Add a step that was timed elsewhere."""
        described = "".join(f';desc="{text}"' for text in descriptions)
        self._steps.append(f"{name}{described};dur={1000 * seconds:.1f}")
        self._observe(name, seconds)

    def copy(self) -> ServerTiming:
        """Return a copy for one answer, when several answers share the steps so far."""
        copied = ServerTiming(self._observe)
        copied._steps += self._steps
        return copied

    def __str__(self) -> str:
        return ", ".join(self._steps)
