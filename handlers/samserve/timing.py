"""How long each step took, in the words of HTTP's `Server-Timing` header.

Source: W3C Server Timing, https://www.w3.org/TR/server-timing/.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class ServerTiming:
    """The steps of one answer, in the order they were done."""

    def __init__(self, *steps: str) -> None:
        self._steps = list(steps)

    @contextmanager
    def step(self, name: str) -> Iterator[list[str]]:
        """Times the block. What it appends to the list given is the step's description."""
        descriptions: list[str] = []
        start = time.perf_counter()
        yield descriptions
        ms = 1000 * (time.perf_counter() - start)
        described = "".join(f';desc="{text}"' for text in descriptions)
        self._steps.append(f"{name}{described};dur={ms:.1f}")

    def copy(self) -> ServerTiming:
        """For an answer that shares the steps so far with others."""
        return ServerTiming(*self._steps)

    def __str__(self) -> str:
        return ", ".join(self._steps)
