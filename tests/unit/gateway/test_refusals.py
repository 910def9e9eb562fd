"""Every error is an answer in the one shape, with its status, its code and its headers."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from samserve_gateway.readiness import Readiness
from tests.support import torchserve
from tests.support.http import Answered, ask, lone_gateway, serving
from tests.support.paths import ROOT
from tests.support.torchserve import (
    QUEUE_FULL,
    WORKER_DIED,
    Gateway,
    Handler,
    answer,
    cut,
    wait_for_ever,
)
from tests.support.waiting import wait_for

TOKEN = "the administrator's own"
GOOD = {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": "QUJD"}
WEIGHTS = {"type": "vit_t", "name": "mine", "url": "mine.pt"}
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
LIMIT = 2**16


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with torchserve.gateway(admin_token=TOKEN, max_body_bytes=LIMIT) as gateway:
        yield gateway


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code", "field"),
    [
        ("/sam/", b"", {}, 400, "invalid_request", None),
        ("/sam/", b"{", {}, 400, "invalid_request", None),
        ("/sam/", b"[]", {}, 400, "invalid_request", None),
        ("/sam/", b'{"x": NaN, "type": 7}', {}, 422, "invalid_field", "type"),
        ("/sam/", {**GOOD, "type": 7}, {}, 422, "invalid_field", "type"),
        ("/sam/", {**GOOD, "checkpoint_url": 7}, {}, 422, "invalid_field", "checkpoint_url"),
        ("/sam/", {**GOOD, "type": "vit_x"}, {}, 404, "not_found", "type"),
        ("/sam/", {**GOOD, "type": "sam2_l"}, {}, 404, "not_found", "type"),
        ("/sam/", {**GOOD, "type": "sam3"}, {}, 404, "not_found", "type"),
        ("/sam/", {**GOOD, "checkpoint_url": "no"}, {}, 404, "not_found", "checkpoint_url"),
        ("/sam/", GOOD, {"Accept": "a" * 5000}, 431, "header_too_large", "Accept"),
        ("/sam/", GOOD, {"Content-Encoding": "br"}, 415, "unsupported_media_type", None),
        ("/sam/", GOOD, {"Content-Encoding": "gzip"}, 400, "invalid_request", None),
        ("/sam/", GOOD, {"Content-Type": "multipart/mixed"}, 415, "unsupported_media_type", None),
        ("/sam/", GOOD, {"Content-Type": "multipart/form-data"}, 400, "invalid_request", None),
        ("/sam/", b"{}" + b" " * LIMIT, {}, 413, "too_large", None),
        ("/sam/automask/?stream=maybe", GOOD, {}, 422, "invalid_field", "stream"),
        ("/sam/weights/", WEIGHTS, {}, 401, "unauthorized", None),
        (
            "/sam/weights/",
            WEIGHTS,
            {**ADMIN, "Content-Type": "application/json; charset=utf-7"},
            *(415, "unsupported_media_type", None),
        ),
        ("/sam/weights/", {**WEIGHTS, "name": "a.b"}, ADMIN, 422, "invalid_field", "name"),
        ("/sam/weights/", {**WEIGHTS, "type": "vit_b"}, ADMIN, 404, "not_found", "type"),
        ("/sam/weights/", {**WEIGHTS, "name": "default"}, ADMIN, 422, "invalid_field", "name"),
        ("/sam/weights/", b" " * (LIMIT + 1), ADMIN, 413, "too_large", None),
        ("/nowhere", GOOD, {}, 404, "not_found", None),
        ("/healthz", GOOD, {}, 405, "method_not_allowed", None),
    ],
)
def test_a_refusal(
    gateway: Gateway,
    path: str,
    body: Any,
    headers: dict[str, str],
    status: int,
    code: str,
    field: str | None,
) -> None:
    got = gateway.post(path, body, headers)
    error = got.error()
    assert (got.status, error["code"], error["field"]) == (status, code, field)
    assert got.headers["Content-Type"] == "application/json"
    assert got.headers["X-Request-Id"]
    assert error["message"]
    assert got.headers["WWW-Authenticate"] == ("Bearer" if status == 401 else None)
    accepted = "gzip, zstd" if "Content-Encoding" in headers and status == 415 else None
    if accepted:
        assert got.headers["Accept-Encoding"] == accepted
    assert got.headers["Allow"] == ("GET, HEAD" if status == 405 else None)


def test_the_methods_of_a_path_with_several_routes(gateway: Gateway) -> None:
    got = gateway.get("/sam/weights/cancel/", ADMIN)
    assert (got.status, got.content) == (200, b"Cancel signal sent")
    for method in ("PUT", "DELETE"):
        answered = ask(gateway.port, method, "/sam/weights/")
        assert (answered.status, answered.headers["Allow"]) == (405, "GET, HEAD, POST")


def test_without_a_token_nobody_may_register() -> None:
    with torchserve.gateway() as gateway:
        for got in (
            gateway.post("/sam/weights/", WEIGHTS, ADMIN),
            gateway.get("/sam/weights/cancel/", ADMIN),
        ):
            assert (got.status, got.error()["code"]) == (403, "forbidden")
            assert "SAMSERVE_ADMIN_TOKEN" in got.error()["message"]


def test_torchserves_refusals(gateway: Gateway, caplog: pytest.LogCaptureFixture) -> None:
    gateway.torchserve.script("vit_t", answer(QUEUE_FULL, 503), answer({"message": "Odd."}, 507))
    full, odd = gateway.post("/sam/", GOOD), gateway.post("/sam/", GOOD)
    assert (full.status, full.headers["Retry-After"]) == (503, "1")
    assert full.error() == {
        "code": "busy",
        "message": "The queue is full. Try again in a second.",
        "field": None,
    }
    assert (odd.status, odd.error()["code"]) == (503, "unavailable")
    assert "refused this request (HTTP 507)" in odd.error()["message"]
    assert "Odd." not in odd.error()["message"]
    assert "HTTP 507: Odd." in caplog.text


@pytest.mark.parametrize(
    ("handler", "what", "seconds"),
    [
        (answer(WORKER_DIED, 503), "The worker that had this request has ended.", 1),
        (answer({"message": "Odd."}, 507), "refused this request (HTTP 507).", 1),
        (answer(b"<html>", 502), "refused this request (HTTP 502).", 1),
        (cut(), "closed the connection before its answer was complete.", 1),
    ],
    ids=["worker died", "torchserve", "balancer", "cut"],
)
@pytest.mark.parametrize("path", ["/sam/", "/sam/automask/", "/sam/automask/?stream=1"])
def test_a_failure_says_when_to_try_again_and_where_the_reason_is(
    caplog: pytest.LogCaptureFixture,
    path: str,
    handler: Handler,
    what: str,
    seconds: int,
) -> None:
    lane = "vit_t" if path == "/sam/" else "vit_t-automask"
    with torchserve.gateway() as gateway:
        gateway.torchserve.script(lane, handler, handler)
        check_advice(gateway.post(path, GOOD), what, seconds)
    # The log calls it a failure, other than a queue that is full.
    assert (logging.WARNING, "Answered.") in [(line.levelno, line.msg) for line in caplog.records]


def check_advice(got: Answered, what: str, seconds: int) -> None:
    """Check that a 503 tells the client when to try again, and the operator where to look."""
    error = got.error()
    assert (got.status, error["code"]) == (503, "unavailable")
    assert what in error["message"]
    assert got.headers.get_all("Retry-After") == [str(seconds)]
    assert f"Try again in {seconds} s." in error["message"]
    assert "run/<port>/logs" in error["message"]
    assert "X-Request-Id" in error["message"]


@pytest.mark.parametrize("path", ["/sam/", "/sam/automask/", "/sam/automask/?stream=1"])
def test_a_torchserve_that_is_started_again_needs_some_seconds(path: str) -> None:
    nowhere = "http://127.0.0.1:9"
    with torchserve.gateway(inference_url=nowhere, management_url=nowhere) as gateway:
        check_advice(gateway.post(path, GOOD), "it is starting, or it has ended.", 5)
        check_advice(gateway.get("/sam/weights/"), "it is starting, or it has ended.", 5)
    with torchserve.gateway(torchserve_tokens="on", key_file=ROOT / "none.json") as gateway:
        check_advice(gateway.post(path, GOOD), "no token for TorchServe", 5)
    with torchserve.gateway() as gateway:
        gateway.torchserve.lanes.clear()
        check_advice(gateway.post(path, GOOD), "this server should have it", 5)


def test_a_balancer_without_a_torchserve() -> None:
    with torchserve.gateway() as gateway:
        gateway.torchserve.cut_off = set(gateway.torchserve.lanes)
        check_advice(gateway.get("/sam/weights/"), "management API answered with HTTP 503.", 1)


def test_no_answer_in_time() -> None:
    with torchserve.gateway(prompt_timeout_s=0.2) as gateway:
        gateway.torchserve.script("vit_t", wait_for_ever(threading.Event()))
        got = gateway.post("/sam/", GOOD)
    assert (got.status, got.error()["code"]) == (504, "timeout")
    assert "no answer within 1 s" in got.error()["message"]
    assert "run/<port>/logs" in got.error()["message"]


def test_nothing_of_the_gateways_insides_reaches_a_client(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with serving(lone_gateway()) as port:
        for method, path in (
            ("POST", "/sam/"),
            ("POST", "/sam/automask/"),
            ("POST", "/sam/automask/?stream=1"),
            ("GET", "/sam/weights/"),
            ("GET", "/readyz"),
            ("GET", "/metrics"),
        ):
            got = ask(port, method, path, json.dumps(GOOD).encode() if method == "POST" else None)
            for inside in (b"127.0.0.1", b"aiohttp", b"Error(", b"Errno", b"key_file", b"nowhere"):
                assert inside not in got.content, (path, got.content)
    assert "no tokens in" in caplog.text


def test_an_error_of_the_gateways_own(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_: Readiness) -> None:
        raise ZeroDivisionError("a secret")

    monkeypatch.setattr(Readiness, "check", fail)
    got = gateway.get("/readyz")
    assert (got.status, got.error()["code"]) == (500, "internal_error")
    assert "secret" not in got.error()["message"]
    wait_for(lambda: "a secret" in caplog.text)  # logged after the answer
