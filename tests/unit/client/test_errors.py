"""Answers that are refusals become errors; lines of a stream come one by one."""

from __future__ import annotations

import orjson
import pytest

from samserve.errors import Busy, InvalidField, SamserveError
from samserve_client.errors import UnexpectedAnswer, error_of
from samserve_client.wire import Lines


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("invalid_field", 422, InvalidField),
        ("unauthorized", 401, SamserveError),
        ("busy", 503, Busy),
        ("code_of_a_newer_server", 418, SamserveError),
    ],
)
def test_the_code_chooses_the_class(code: str, status: int, kind: type[SamserveError]) -> None:
    content = orjson.dumps({"error": {"code": code, "message": "words", "field": "bbox"}})
    error = error_of(status, content, "http://there", 7)
    assert isinstance(error, kind)
    assert (error.status, error.code) == (status, code)
    assert error.message.startswith("words")
    assert getattr(error, "retry_after_s", 7) == 7
    assert error.field == (None if kind is Busy else "bbox")


def test_a_wrong_key_says_what_to_do() -> None:
    content = orjson.dumps({"error": {"code": "unauthorized", "message": "No.", "field": None}})
    assert "SAMSERVE_API_KEY" in error_of(401, content, "http://there").message


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b'{"error": "x"}', b"{}", b"\xff"])
def test_a_proxy_answers(content: bytes) -> None:
    error = error_of(502, content, "http://there")
    assert isinstance(error, UnexpectedAnswer)
    assert "http://there answers 502" in error.message


@pytest.mark.parametrize(
    "parts", [[b"a\nb", b"c\n", b"\nd"], [b"a\nbc\n\nd"], [b"", b"a", b"\nbc\n\nd"]]
)
def test_lines_come_as_soon_as_they_are_complete(parts: list[bytes]) -> None:
    seen: list[bytes] = []
    lines = Lines(seen.append)
    for part in parts:
        lines.feed(part)
    assert seen == [b"a", b"bc", b""]
