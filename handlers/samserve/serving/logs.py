"""This module writes each log line as a JSON object, with the ids of the requests it is about.

The id of a request comes from its client, or from the gateway. A search for the id finds the lines
of both the gateway and the worker.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime, timezone

_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")

_ids: ContextVar[tuple[str, ...]] = ContextVar("request_ids", default=())


def is_request_id(text: str) -> bool:
    """Return whether this text may be used as an id in logs and headers."""
    return _ID.fullmatch(text) is not None


def begin(request_id: str) -> None:
    """Mark all later log lines of this task or thread as lines about this request."""
    _ids.set((request_id,))


def request_id() -> str | None:
    """Return the id of the current request; None if there is none or there are several."""
    return _ids.get()[0] if len(_ids.get()) == 1 else None


@contextmanager
def about(*request_ids: str) -> Iterator[None]:
    """Mark the log lines of this block as lines about these requests."""
    token = _ids.set(request_ids)
    try:
        yield
    finally:
        _ids.reset(token)


class JsonFormatter(logging.Formatter):
    """A JsonFormatter writes a log record as one line of JSON.

    The argument `extra={"fields": {...}}` of a logging call adds members to the line.

    Args:
        verbatim: messages that begin with this text stay as they are, because another program
            parses them.
        fields: members of every line.
    """

    def __init__(self, *, verbatim: str | None = None, **fields: str) -> None:
        super().__init__()
        self._verbatim = verbatim
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if self._verbatim is not None and message.startswith(self._verbatim):
            return message
        when = datetime.fromtimestamp(record.created, timezone.utc)
        line = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname,
            "logger": record.name,
            **self._fields,
            "message": message,
        }
        if _ids.get():
            line["request_id"] = " ".join(_ids.get())
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)
