"""Log lines as JSON, each with the requests that it is about."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from samserve.serving import logs

Log = tuple[logging.Logger, io.StringIO]


@pytest.fixture
def log() -> Iterator[Log]:
    """A logger of its own, and what it has written."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(logs.JsonFormatter(verbatim="[METRICS]", lane="vit_t"))
    logger = logging.Logger("a.logger")
    logger.addHandler(handler)
    yield logger, written
    handler.close()


def lines(log: Log) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log[1].getvalue().splitlines()]


def test_a_line(log: Log) -> None:
    log[0].warning("a %s\nof two lines", '"message"')
    [line] = lines(log)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "WARNING",
        "logger": "a.logger",
        "lane": "vit_t",
        "message": 'a "message"\nof two lines',
    }


def test_which_requests_it_is_about(log: Log) -> None:
    with logs.about("one", "two"):
        log[0].info("both")
        with logs.about("two"):
            assert logs.request_id() == "two"
            log[0].info("the second")
        assert logs.request_id() is None
    log[0].info("neither")
    assert [line.get("request_id") for line in lines(log)] == ["one two", "two", None]


def test_fields_and_an_exception(log: Log) -> None:
    try:
        raise KeyError("what")
    except KeyError:
        log[0].exception("Failed.", extra={"fields": {"status": 500}})
    [line] = lines(log)
    assert line["status"] == 500
    assert line["exception"].splitlines()[-1] == "KeyError: 'what'"


def test_what_others_wait_for_is_left_alone(log: Log) -> None:
    log[0].info("[METRICS]name.unit:1|#lane:vit_t")
    assert log[1].getvalue() == "[METRICS]name.unit:1|#lane:vit_t\n"


@pytest.mark.parametrize(
    "text", ["a", "0f8fad5b-d9cb-469f-a165-70867728950e", "a.B_c:9", "x" * 128]
)
def test_ids(text: str) -> None:
    assert logs.is_request_id(text)


@pytest.mark.parametrize("text", ["", "a b", "a\n", 'a"', "a,b", "ä", "x" * 129, "{}", "%n"])
def test_no_ids(text: str) -> None:
    assert not logs.is_request_id(text)
