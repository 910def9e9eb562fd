"""This module prints the steps of the set-up: one line for each, with the seconds that it took.

    with step(".venv: installing"):
        install()

It uses only the standard library, because the set-up runs before anything is installed.
"""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Show:
    """Shows a step's title, bar and seconds. On a terminal they are redrawn every second."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._started = time.monotonic()
        self._doing = ""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Print the title."""
        if sys.stdout.isatty():
            self._thread.start()
        else:
            print(self._title, end="", flush=True)

    def done(self, count: int, total: int, doing: str) -> None:
        """Draw a bar for `count` of `total`, and the word `doing` after it."""
        filled = 20 * count // total
        self._doing = f" [{'#' * filled}{'.' * (20 - filled)}] {doing} {count} of {total}"

    def stop(self) -> None:
        """End the line with the seconds that the step took."""
        self._over.set()
        start = ""
        if self._thread.is_alive():
            self._thread.join()
            start = f"\r\033[K{self._title}"
        print(f"{start}: {time.monotonic() - self._started:.1f} s", flush=True)

    def _run(self) -> None:
        while True:
            seconds = time.monotonic() - self._started
            line = f"{self._title}{self._doing} {seconds:.0f} s"
            width = shutil.get_terminal_size().columns - 1
            print(f"\r\033[K{line[-width:]}", end="", flush=True)
            if self._over.wait(1):
                return


@contextmanager
def step(title: str) -> Iterator[Show]:
    """Print a step's title, and after the block the seconds that it took."""
    show = Show(title)
    show.start()
    try:
        yield show
    finally:
        show.stop()
