"""Each request's id, its metrics and its line in the log."""

from __future__ import annotations

import logging
import re
import socket
from http.client import HTTPResponse
from typing import Any

import pytest

from tests.support.metrics import value_of
from tests.support.torchserve import QUEUE_FULL, Gateway, answer
from tests.support.waiting import wait_for

BODY = {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}


@pytest.mark.parametrize("request_id", ["a", "A.b:c_d-9", "a" * 128])
def test_a_clients_own_id_is_kept(gateway: Gateway, request_id: str) -> None:
    got = gateway.post("/sam/", BODY, {"X-Request-Id": request_id})
    assert got.headers["X-Request-Id"] == request_id
    assert gateway.torchserve.received[0].headers["x-request-id"] == request_id


@pytest.mark.parametrize("request_id", [None, "", "a b", "a" * 129, "{}", "\xff"])
def test_any_other_request_gets_a_new_id(gateway: Gateway, request_id: str | None) -> None:
    headers = {} if request_id is None else {"X-Request-Id": request_id}
    new = [gateway.post("/sam/", BODY, headers).headers["X-Request-Id"] for _ in range(2)]
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in new)
    assert new[0] != new[1]
    received = [request.headers["x-request-id"] for request in gateway.torchserve.received]
    assert received == new


def test_requests_are_counted_by_route(gateway: Gateway) -> None:
    answers = [gateway.post(path, BODY) for path in ("/sam/", "/sam", "//sam/")]
    assert gateway.post("/sam/", b"{").status == 400
    assert gateway.get("/nowhere").status == gateway.get("/elsewhere").status == 404
    page = gateway.metrics()

    def value(name: str, **labels: str) -> float:
        return value_of(page, f"samserve_gateway_{name}", **labels)

    assert value("requests_total", route="/sam/", status="200") == 3
    assert value("requests_total", route="/sam/", status="400") == 1
    assert value("requests_total", route="other", status="404") == 2
    assert value("request_seconds_count", route="/sam/") == 4
    assert value("request_seconds_sum", route="/sam/") > 0
    sent_to_us = 3 * len(gateway.torchserve.received[0].content) + 1
    assert value("received_bytes_total", route="/sam/") == sent_to_us
    assert value("sent_bytes_total", route="/sam/") > sum(len(got.content) for got in answers)
    assert value("in_flight", route="/sam/") == 0
    assert value("in_flight", route="/metrics") == 1


def test_every_503_says_when_to_try_again(gateway: Gateway) -> None:
    refusal = {"error": {"code": "out_of_memory", "message": "Why.", "field": None}}
    own_pace = answer(refusal, 503, Retry_After="9")  # a worker's is not forwarded
    gateway.torchserve.script("vit_t", answer(refusal, 503), answer(QUEUE_FULL, 503), own_pace)
    for _ in range(3):
        got = gateway.post("/sam/", BODY)
        assert (got.status, got.headers.get_all("Retry-After")) == (503, ["1"])
    gateway.torchserve.lanes.clear()
    assert gateway.get("/readyz").headers["Retry-After"] == "1"
    missing = gateway.post("/sam/", BODY)  # the lane is being started
    assert missing.headers.get_all("Retry-After") == ["5"]
    assert "Try again in 5 s." in missing.error()["message"]
    assert "Retry-After" not in gateway.get("/nowhere").headers


def records(caplog: pytest.LogCaptureFixture) -> list[tuple[int, Any]]:
    return [
        (record.levelno, record.__dict__["fields"])
        for record in caplog.records
        if record.name == "samserve_gateway.request_log"
    ]


def test_the_line_of_a_request(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "samserve_gateway"):
        got = gateway.post("/sam/", BODY)
        gateway.torchserve.script(
            "vit_t", answer({"message": "Odd."}, 500), answer(QUEUE_FULL, 503)
        )
        gateway.post("/sam/", BODY)
        gateway.post("/sam/", BODY)
        gateway.torchserve.lanes.clear()
        gateway.get("/readyz")
        wait_for(lambda: len(records(caplog)) == 4)  # each is logged after its answer
    (level, fields), (failed_level, failed), busy, (ready_level, ready) = records(caplog)
    assert (busy[0], busy[1]["status"]) == (logging.INFO, 503)  # a full queue is no failure
    assert level == logging.INFO
    assert fields.pop("seconds") >= 0
    received = len(gateway.torchserve.received[0].content)
    assert fields == {
        "method": "POST",
        "route": "/sam/",
        "status": 200,
        "received": received,
        "sent": len(got.content),
    }
    assert (failed_level, failed["status"]) == (logging.WARNING, 503)
    # Not to be ready yet is no failure.
    assert (ready_level, ready["status"]) == (logging.INFO, 503)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
    ],
)
def test_what_is_no_request_is_recorded_too(
    gateway: Gateway, caplog: pytest.LogCaptureFixture, sent: bytes, status: int
) -> None:
    with (
        caplog.at_level(logging.INFO),
        socket.create_connection(("127.0.0.1", gateway.port), timeout=30) as connection,
    ):
        connection.sendall(sent)
        response = HTTPResponse(connection)
        response.begin()
        assert response.read()
        assert response.status == status
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        request_id = response.headers["X-Request-Id"]
    assert re.fullmatch("[0-9a-f]{32}", request_id or "")
    [line] = [record.fields for record in caplog.records if record.msg == "Refused."]  # type: ignore[attr-defined]
    assert (line["request_id"], line["status"]) == (request_id, status)
    page = gateway.metrics()
    name = "samserve_gateway_requests_total"
    assert value_of(page, name, route="other", status=str(status)) == 1
