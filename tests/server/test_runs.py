"""A job: its events, its progress, its deadline, and a client that hangs up."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest
import requests

from samserve_launcher import loopback
from tests.support.sample_pictures import new_picture
from tests.support.waiting import wait_for

GRID = 24
POINTS = GRID**2


def body(**fields: Any) -> dict[str, Any]:
    # One point per batch, so that a job reports its progress often.
    return {
        "type": "vit_t",
        "points_per_side": GRID,
        "points_per_batch": 1,
        "b64img": new_picture(),
        **fields,
    }


def url(server: Any) -> str:
    return f"{server.options.url}/sam/automask/"


def progress(server: Any) -> dict[str, Any]:
    answer: dict[str, Any] = server.http.get(f"{server.options.url}/sam/progress/").json()
    assert set(answer) == {"message", "percent"}
    return answer


def events_of(lines: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def test_a_stream_of_events(server: Any) -> None:
    request = body()
    with server.http.post(f"{url(server)}?stream=1", json=request, stream=True) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "application/x-ndjson"
        arrived = [(time.monotonic(), event) for event in map(json.loads, answer.iter_lines())]
    events = [event for _, event in arrived]
    reports = [event for event in events if event["event"] == "progress"]
    assert [event["done"] for event in reports] == sorted(event["done"] for event in reports)
    assert len(reports) > 5
    assert (reports[0]["done"], reports[-1]["done"]) == (0, POINTS)
    assert {event["total"] for event in reports} == {POINTS}
    # The events are sent as they occur, not all at the end.
    assert arrived[-1][0] - arrived[0][0] > 0.5
    assert [event["event"] for event in events[len(reports) :]] == [
        *["feature"] * (len(events) - len(reports) - 1),
        "done",
    ]
    features = [event for event in events if event.pop("event") == "feature"]
    assert features == server.http.post(url(server), json=request).json() != []


def test_a_stream_that_is_refused(server: Any) -> None:
    for fields, status in (
        ({"points_per_side": 0}, 422),
        ({"b64img": "QUJD"}, 422),
        ({"type": "vit_h"}, 404),
        ({"timeout_s": 10_000}, 422),
    ):
        answer = server.http.post(f"{url(server)}?stream=1", json=body(**fields))
        assert answer.status_code == status
        assert set(answer.json()["error"]) == {"code", "message", "field"}


def test_progress_of_what_is_running(server: Any) -> None:
    assert progress(server) == {"message": "Nothing is running.", "percent": -1}
    answers: list[requests.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(server.http.post(url(server), json=body()))
    )
    asking.start()
    seen = []
    while asking.is_alive():
        seen.append(progress(server))
        time.sleep(0.05)
    percents = [report["percent"] for report in seen if report["percent"] >= 0]
    assert percents == sorted(percents)
    assert len(set(percents)) > 3
    assert any(f"of {POINTS} points" in report["message"] for report in seen)
    assert answers[0].status_code == 200
    assert progress(server)["percent"] == -1


def test_a_client_that_goes_away_frees_the_worker(server: Any) -> None:
    endless = body(points_per_side=120)  # minutes
    with pytest.raises(requests.ReadTimeout):
        loopback.post(url(server), 1.5, json=endless)
    is_free(server)


def test_a_reader_of_events_that_goes_away_frees_the_worker(server: Any) -> None:
    endless = body(points_per_side=120)
    with server.http.post(f"{url(server)}?stream=1", json=endless, stream=True) as answer:
        events = map(json.loads, answer.iter_lines())
        assert next(event for event in events if event["done"] > 0)["total"] == 120**2
    is_free(server)


def is_free(server: Any) -> None:
    """Assert that the lane's only worker takes the next job at once."""
    left = time.monotonic()
    wait_for(lambda: progress(server)["percent"] == -1)
    assert server.http.post(url(server), json=body(points_per_side=2)).status_code == 200
    assert time.monotonic() - left < 20


def test_a_client_that_goes_away_while_it_waits_in_the_queue(server: Any) -> None:
    """The worker does not begin a job whose client has gone."""
    first = threading.Thread(target=server.http.post, args=(url(server),), kwargs={"json": body()})
    first.start()
    wait_for(lambda: progress(server)["percent"] >= 0)
    with pytest.raises(requests.Timeout):
        loopback.post(url(server), 0.5, json=body(points_per_side=120))
    first.join()
    assert server.http.post(url(server), json=body(points_per_side=2)).status_code == 200
    assert list(server.options.jobs_dir.iterdir()) == []


def test_a_deadline(server: Any, door: Any) -> None:
    request = body(points_per_side=120, timeout_s=1.5)
    answer = door("automask", request)
    assert answer.status_code == 504
    content = answer.json()
    assert content["error"]["code"] == "timeout"
    assert 0 < content["done"] < content["total"] == 120**2
    for feature in content["found"]:
        assert feature["type"] == "Feature"


def test_a_deadline_in_a_stream(server: Any) -> None:
    request = body(points_per_side=120, timeout_s=1.5)
    with server.http.post(f"{url(server)}?stream=1", json=request, stream=True) as answer:
        events = events_of(answer.iter_lines())
    assert events[-1]["event"] == "error"
    assert events[-1]["error"]["code"] == "timeout"
    assert 0 < events[-1]["done"] < events[-1]["total"]


def test_beyond_the_servers_own_limit(door: Any) -> None:
    refused = door("automask", body(timeout_s=1e6))
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "timeout_s")
