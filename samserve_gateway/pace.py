"""Notices that bytes go through a connection too slowly."""

from __future__ import annotations

RATE = 2**14
"""Fewest bytes per second of a body that is being sent, and of an answer that is being read."""

SLOW = "slow_body"
"""The key in a request's ASGI state with which the connection says that the body is too slow. The
value is the error's message."""


class Pace:
    """Watches a count of bytes that should grow.

    Args:
        window_s: seconds over which the average is taken.
        stall_s: longest time without a byte; None: as long as the window.
    """

    def __init__(self, window_s: float, stall_s: float | None = None) -> None:
        self._window_s = window_s
        self._stall_s = stall_s
        self._start: tuple[float, int] | None = None
        self._last = (0.0, 0)

    def pause(self) -> None:
        """Begin anew at the next check: now nothing has to move."""
        self._start = None

    def check(self, now: float, count: int) -> str | None:
        """Return what is wrong with the count of bytes at this time; None if it grows fast enough.

        Args:
            now: seconds.
        """
        if self._start is None:
            self._start = self._last = (now, count)
            return None
        if count != self._last[1]:
            self._last = (now, count)
        elif self._stall_s is not None and now - self._last[0] >= self._stall_s:
            return f"no byte in {self._stall_s:.0f} seconds"
        seconds, grown = now - self._start[0], count - self._start[1]
        if seconds < self._window_s:
            return None
        if grown < RATE * seconds:
            return (
                f"{grown / seconds:.0f} bytes per second over {seconds:.0f} seconds; the least is "
                f"{RATE}"
            )
        self._start = (now, count)
        return None
