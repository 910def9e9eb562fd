"""A job is a piece of work that takes a while. It reports its progress and can be stopped."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Literal

_REPORT_EVERY_S = 0.2


class Job:
    """One piece of work, from the side of the code that does it. Threads may share it.

    Args:
        deadline_s: seconds from now that the job may take; None: no limit.
        cancelled: returns whether the job was cancelled; called between batches.
        report: called with (done, total) at the start, at most every 0.2 s, and at the end.
    """

    def __init__(
        self,
        *,
        deadline_s: float | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._deadline = None if deadline_s is None else time.monotonic() + deadline_s
        self._cancelled = cancelled
        self._report = report
        self._lock = threading.Lock()
        self._reported = -_REPORT_EVERY_S
        self.done = 0
        self.total = 0
        self.stopped: Literal["cancelled", "timeout"] | None = None
        """Why the job stopped before its end; None if it did not."""

    def begin(self, total: int) -> None:
        """Set the amount of work, and report 0 of it as done."""
        self.total = total
        self._report(0, total)

    def may_go_on(self) -> bool:
        """Return whether to begin another batch."""
        if self.stopped is None:
            if self._cancelled():
                self.stopped = "cancelled"
            elif self._deadline is not None and time.monotonic() >= self._deadline:
                self.stopped = "timeout"
        return self.stopped is None

    def advance(self, count: int) -> None:
        """Add to the amount of work that is done."""
        with self._lock:
            self.done += count
            now = time.monotonic()
            if self.done == self.total or now - self._reported >= _REPORT_EVERY_S:
                self._reported = now
                self._report(self.done, self.total)
