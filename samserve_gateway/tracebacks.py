"""Shortens log records whose traceback has just been logged.

A fault that every request meets would else write kilobytes for each of them, and fill the disk.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections import OrderedDict
from types import TracebackType

INTERVAL_S = 60.0
"""The same traceback is logged in full at most once in this time."""

MAX_REMEMBERED = 256
"""Tracebacks that are remembered."""

_Place = tuple[str, str, int]


class RepeatedTracebacks(logging.Filter):
    """A filter for a handler. It leaves every record, but of a repeated traceback only a line."""

    def __init__(self) -> None:
        super().__init__()
        self._logged_s: OrderedDict[_Place, float] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        """Replace a traceback that was logged in full less than `INTERVAL_S` ago."""
        if not record.exc_info or record.exc_info[1] is None:
            return True
        _, error, tb = record.exc_info
        place, now = _place(error, tb), time.monotonic()
        if now - self._logged_s.get(place, -INTERVAL_S) < INTERVAL_S:
            summary = traceback.format_exception_only(error)[-1].strip()[:500]
            record.msg = f"{record.getMessage().strip()} {summary} (the traceback is above)"
            record.args = None
            record.exc_info = None
            record.exc_text = None
            return True
        self._logged_s[place] = now
        self._logged_s.move_to_end(place)
        if len(self._logged_s) > MAX_REMEMBERED:
            self._logged_s.popitem(last=False)
        return True


def _place(error: BaseException, tb: TracebackType | None) -> _Place:
    """Return the kind of an exception, and where it was raised."""
    while tb is not None and tb.tb_next is not None:
        tb = tb.tb_next
    file = tb.tb_frame.f_code.co_filename if tb is not None else ""
    return type(error).__qualname__, file, tb.tb_lineno if tb is not None else 0
