"""A traceback is logged in full once, and then as a line."""

from __future__ import annotations

import io
import json
import logging
from typing import Any

import pytest

from samserve.serving.logs import JsonFormatter
from samserve_gateway import tracebacks
from samserve_gateway.tracebacks import RepeatedTracebacks


def fail(text: str) -> None:
    raise ValueError(text)


def fail_elsewhere(text: str) -> None:
    raise ValueError(text)


class Log:
    def __init__(self) -> None:
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(JsonFormatter())
        handler.addFilter(RepeatedTracebacks())
        self.logger = logging.Logger("a test")
        self.logger.addHandler(handler)

    def failure(self, raising: Any, text: str) -> dict[str, Any]:
        """Return the line that a failure is logged by."""
        self.stream.seek(0)
        self.stream.truncate()
        try:
            raising(text)
        except ValueError:
            self.logger.exception("It failed: %s\n", "here")
        line: dict[str, Any] = json.loads(self.stream.getvalue())
        return line


def test_the_second_time_it_is_a_line() -> None:
    log = Log()
    first, second = log.failure(fail, "one"), log.failure(fail, "two")
    assert "Traceback" in first["exception"]
    assert "exception" not in second
    assert second["message"] == "It failed: here ValueError: two (the traceback is above)"


def test_a_failure_elsewhere_has_a_traceback_of_its_own() -> None:
    log = Log()
    assert "exception" in log.failure(fail, "one")
    assert "exception" in log.failure(fail_elsewhere, "one")
    assert "exception" not in log.failure(fail, "one")


def test_it_is_logged_in_full_again_later(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log()
    log.failure(fail, "one")
    monkeypatch.setattr(tracebacks, "INTERVAL_S", 0)
    assert "exception" in log.failure(fail, "one")


def test_a_long_message_is_cut() -> None:
    log = Log()
    log.failure(fail, "one")
    assert len(log.failure(fail, "a" * 10_000)["message"]) < 1000


def test_a_record_without_an_exception_passes() -> None:
    record = logging.LogRecord("a", logging.INFO, __file__, 1, "text", None, None)
    assert RepeatedTracebacks().filter(record)
    assert record.getMessage() == "text"
