"""How long each step took, in the words of HTTP's `Server-Timing` header.

Source: W3C Server Timing, https://www.w3.org/TR/server-timing/.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class ServerTiming:
    """The steps of one answer, in the order they were done.

    Args:
        observe: told each step's name and seconds, once.
    """

    def __init__(self, observe: Callable[[str, float], None] = lambda name, seconds: None) -> None:
        self._observe = observe
        self._steps: list[str] = []

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times the block. What it appends to the list given is the step's description."""
        descriptions: list[str] = []
        start = time.perf_counter()
        yield descriptions
        self.add(name, time.perf_counter() - start, *descriptions)

    def add(self, name: str, seconds: float, *descriptions: str) -> None:
        """A step that was timed elsewhere."""
        described = "".join(f';desc="{text}"' for text in descriptions)
        self._steps.append(f"{name}{described};dur={1000 * seconds:.1f}")
        self._observe(name, seconds)

    def copy(self) -> ServerTiming:
        """For an answer that shares the steps so far with others."""
        own = ServerTiming(self._observe)
        own._steps += self._steps
        return own

    def __str__(self) -> str:
        return ", ".join(self._steps)
