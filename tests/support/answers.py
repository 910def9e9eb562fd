"""Parts of an HTTP answer that many tests compare."""

from __future__ import annotations

from typing import Any


def source(answer: Any) -> str:
    """Return where the embedding came from: `encoder`, `memory`, `machine` or `redis`."""
    assert answer.status_code == 200, answer.text
    timing: str = answer.headers["Server-Timing"]
    return timing.split('embed;desc="')[1].split('"')[0]


def error_of(answer: Any) -> tuple[int, str, str | None]:
    """Return an error answer's status, code and field."""
    error = answer.json()["error"]
    return answer.status_code, error["code"], error["field"]
