"""Log lines that programs can read: a JSON object each, with the ids of the requests it is about.

A request's id comes from its client, or is made by the first of ours that it meets; so one word
finds what gateway and worker said of it. Knows neither HTTP nor TorchServe.
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
    """Whether this may stand in our logs and headers."""
    return _ID.fullmatch(text) is not None


def begin(request_id: str) -> None:
    """What this task or thread logs from now on is about this request."""
    _ids.set((request_id,))


def request_id() -> str | None:
    """Of the request at work, if there is just one."""
    return _ids.get()[0] if len(_ids.get()) == 1 else None


@contextmanager
def about(*request_ids: str) -> Iterator[None]:
    """What is logged in this block is about these requests."""
    token = _ids.set(request_ids)
    try:
        yield
    finally:
        _ids.reset(token)


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON.

    `extra={"fields": {...}}` of a logging call stands in it by name.

    Args:
        verbatim: messages that begin with this are left alone: another program waits for them.
        fields: what every line shall say.
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
