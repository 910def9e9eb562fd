"""From a client's body to a lane of TorchServe, and the lane's answer back to the client."""

from __future__ import annotations

import base64
import gzip
import threading
from hashlib import sha256
from typing import Any

import pytest

from samserve.pictures.digests import reference_to
from samserve_gateway.compression import WORTHWHILE_BYTES as WORTH_COMPRESSING
from samserve_gateway.routed_bodies import MAX_ACCEPT_BYTES
from tests.support import torchserve
from tests.support.metrics import value_of
from tests.support.torchserve import (
    QUEUE_FULL,
    UNKNOWN_IMAGE,
    WORKER_DIED,
    Gateway,
    answer,
    cut,
    events,
    wait_for_ever,
)

PICTURE = base64.b64encode(bytes(range(256)) * 128).decode()  # worth replacing by its digest
DIGEST = sha256(PICTURE.encode()).hexdigest()
PROMPT = {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": PICTURE}
AUTOMASK = {"type": "vit_t", "points_per_side": 2, "b64img": PICTURE}
BODIES: dict[str, dict[str, Any]] = {
    "/sam/": PROMPT,
    "/sam/automask/": AUTOMASK,
    "/sam/automask/?stream=1": AUTOMASK,
}
LANES = {path: "vit_t" if path == "/sam/" else "vit_t-automask" for path in BODIES}
STREAM = [{"event": "progress", "done": 4, "total": 4}, {"event": "done", "pages": 1}]

paths = pytest.mark.parametrize("path", BODIES)
modes = pytest.mark.parametrize("path", ["/sam/", "/sam/automask/"])


def outcomes(gateway: Gateway) -> dict[str, float]:
    page = gateway.metrics()
    names = ("known", "forgotten", "full")
    return {o: value_of(page, "samserve_gateway_pictures_total", outcome=o) for o in names}


def retries(gateway: Gateway) -> float:
    return value_of(gateway.metrics(), "samserve_gateway_retries_total")


@modes
def test_an_answer_reaches_the_client_as_it_is(gateway: Gateway, path: str) -> None:
    headers = {"Content_Type": "application/geo+json", "Server_Timing": "embed;dur=1"}
    gateway.torchserve.script(
        LANES[path], answer([{"a": 1}], 200, **headers, X_Image_Pages="3", X_Other="no")
    )
    got = gateway.post(path, BODIES[path])
    assert (got.status, got.content) == (200, b'[{"a": 1}]')
    assert got.headers["Content-Type"] == "application/geo+json"
    assert got.headers["Server-Timing"] == "embed;dur=1"
    assert got.headers["X-Image-Pages"] == "3"
    assert got.headers["Vary"] == "Accept, Accept-Encoding"
    assert "X-Other" not in got.headers
    [received] = gateway.torchserve.received
    assert received.lane == LANES[path]
    assert received.json() == BODIES[path]


@modes
def test_a_workers_refusal_reaches_the_client_as_it_is(gateway: Gateway, path: str) -> None:
    refusal = {"error": {"code": "invalid_field", "message": "Why.", "field": "bbox"}}
    for status in (400, 404, 413, 422, 503):
        gateway.torchserve.script(LANES[path], answer(refusal, status))
        got = gateway.post(path, BODIES[path])
        assert (got.status, got.json()) == (status, refusal)


@paths
def test_what_the_worker_and_a_balancer_are_told(gateway: Gateway, path: str) -> None:
    gateway.torchserve.script(LANES[path], events(*STREAM) if "stream" in path else answer([]))
    headers = {"X-Request-Id": "mine", "Accept": "application/geo+json", "Cookie": "a=b"}
    assert gateway.post(path, BODIES[path], headers).status == 200
    [received] = gateway.torchserve.received
    assert received.headers["x-request-id"] == "mine"
    assert received.headers["x-image-digest"] == DIGEST
    assert received.headers["content-type"] == "application/json"
    assert received.headers.get("samserve-stream") == ("true" if "stream" in path else None)
    accept = received.headers["accept"]
    assert accept == ("*/*" if "stream" in path else "application/geo+json")
    for name in ("samserve-stand-in", "samserve-job", "cookie", "authorization"):
        assert name not in received.headers


@paths
def test_a_known_picture_goes_as_its_digest(gateway: Gateway, path: str) -> None:
    def script() -> None:
        gateway.torchserve.script(LANES[path], events(*STREAM) if "stream" in path else answer([]))

    for _ in range(3):
        script()
        assert gateway.post(path, BODIES[path]).status == 200
    first, *others = gateway.torchserve.received
    assert first.json() == BODIES[path]
    assert len(others) == 2
    for received in others:
        assert received.json() == {**BODIES[path], "b64img": f"sha256:{DIGEST}"}
        assert received.headers["x-image-digest"] == DIGEST
    assert outcomes(gateway) == {"full": 1, "known": 2, "forgotten": 0}


@paths
def test_a_forgotten_picture_is_sent_in_full_once(gateway: Gateway, path: str) -> None:
    lane, script = LANES[path], gateway.torchserve.script
    good = events(*STREAM) if "stream" in path else answer([])
    script(lane, good, answer(UNKNOWN_IMAGE, 409), good)
    for _ in range(2):
        assert gateway.post(path, BODIES[path]).status == 200
    sent = [received.json()["b64img"] for received in gateway.torchserve.received]
    assert sent == [PICTURE, f"sha256:{DIGEST}", PICTURE]
    assert outcomes(gateway) == {"full": 1, "known": 1, "forgotten": 1}


@paths
def test_a_client_that_sends_an_unknown_digest_is_told_so(gateway: Gateway, path: str) -> None:
    gateway.torchserve.script(LANES[path], answer(UNKNOWN_IMAGE, 409))
    got = gateway.post(path, {**BODIES[path], "b64img": f"sha256:{DIGEST}"})
    assert (got.status, got.json()) == (409, UNKNOWN_IMAGE)
    assert len(gateway.torchserve.received) == 1


def test_a_picture_is_known_only_once_it_was_answered(gateway: Gateway) -> None:
    refusal = {"error": {"code": "invalid_field", "message": "Why.", "field": "bbox"}}
    gateway.torchserve.script("vit_t", answer(refusal, 422))
    for _ in range(2):
        gateway.post("/sam/", PROMPT)
    assert [r.json()["b64img"] for r in gateway.torchserve.received] == [PICTURE, PICTURE]


def test_a_small_body_goes_as_it_came_until_its_picture_is_known(gateway: Gateway) -> None:
    """A worker that has forgotten a small picture embeds it again, as it does a large one."""
    content = b' {"b64img": "QUJD", "type":"vit_t", "n": 1e2}'
    for _ in range(2):
        assert gateway.post("/sam/", content).status == 200
    first, second = gateway.torchserve.received
    assert first.content == content
    assert second.json() == {**first.json(), "b64img": reference_to("QUJD")}


def test_a_file_of_a_form_goes_on_as_a_form_and_then_as_its_digest(gateway: Gateway) -> None:
    file = base64.b64decode(PICTURE)
    form = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name, value)
        for name, value in ((b"type", b"vit_t"), (b"bbox", b"[1, 2, 3, 4]"), (b"image", file))
    )
    for _ in range(2):
        headers = {"Content-Type": "multipart/form-data; boundary=b"}
        assert gateway.post("/sam/", form + b"--b--\r\n", headers).status == 200
    first, second = gateway.torchserve.received
    assert file in first.content
    assert first.headers["content-type"].startswith("multipart/form-data; boundary=")
    reference = f"sha256:{sha256(file).hexdigest()}"
    assert second.json() == {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": reference}


@modes
def test_a_large_answer_is_compressed_for_who_accepts_it(gateway: Gateway, path: str) -> None:
    large = b"[" + b" " * WORTH_COMPRESSING + b"]"
    gateway.torchserve.script(LANES[path], answer(large), answer(large))
    got = gateway.post(path, BODIES[path], {"Accept-Encoding": "gzip"})
    assert got.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(got.content) == large
    assert gateway.post(path, BODIES[path]).content == large


# TorchServe's own refusals


@modes
def test_a_full_queue_is_503_and_says_when_to_try_again(gateway: Gateway, path: str) -> None:
    gateway.torchserve.script(LANES[path], answer(QUEUE_FULL, 503))
    got = gateway.post(path, BODIES[path])
    assert (got.status, got.headers["Retry-After"]) == (503, "1")
    assert got.error()["code"] == "busy"
    assert got.error()["message"].startswith("The queue is full.")
    assert (len(gateway.torchserve.received), retries(gateway)) == (1, 0)


@modes
def test_what_died_with_its_worker_is_sent_once_more(gateway: Gateway, path: str) -> None:
    gateway.torchserve.script(LANES[path], answer(WORKER_DIED, 503), answer([1]))
    got = gateway.post(path, BODIES[path])
    assert (got.status, got.json()) == (200, [1])
    first, second = gateway.torchserve.received
    assert first.content == second.content
    assert first.headers == second.headers
    assert retries(gateway) == 1


@modes
def test_no_request_is_sent_a_third_time(gateway: Gateway, path: str) -> None:
    gateway.torchserve.script(LANES[path], *[answer(WORKER_DIED, 503)] * 3)
    got = gateway.post(path, BODIES[path])
    assert (got.status, got.headers["Retry-After"]) == (503, "1")
    message = got.error()["message"]
    assert message.startswith("The worker that had this request has ended. Try again in 1 s.")
    assert len(gateway.torchserve.received) == 2


@pytest.mark.parametrize("lost", [cut(), answer(b"<html>", 502)], ids=["cut", "balancer"])
def test_a_prompt_lost_on_the_network_is_sent_once_more(gateway: Gateway, lost: Any) -> None:
    gateway.torchserve.script("vit_t", lost)
    assert gateway.post("/sam/", PROMPT).status == 200
    assert (len(gateway.torchserve.received), retries(gateway)) == (2, 1)


@pytest.mark.parametrize("path", ["/sam/automask/", "/sam/automask/?stream=1"])
@pytest.mark.parametrize("lost", [cut(), answer(b"<html>", 502)], ids=["cut", "balancer"])
def test_an_automask_lost_on_the_network_is_not(gateway: Gateway, path: str, lost: Any) -> None:
    gateway.torchserve.script("vit_t-automask", lost)
    got = gateway.post(path, AUTOMASK)
    assert (got.status, got.headers["Retry-After"]) == (503, "1")
    assert got.error()["code"] == "unavailable"
    assert len(gateway.torchserve.received) == 1


@paths
def test_a_type_without_a_lane_is_404(gateway: Gateway, path: str) -> None:
    got = gateway.post(path, {**BODIES[path], "type": "vit_b"})
    assert (got.status, got.error()["code"], got.error()["field"]) == (404, "not_found", "type")
    assert "vit_b is not loaded. Loaded: vit_t." in got.error()["message"]


@paths
def test_an_unknown_type_is_404_and_reaches_no_lane(gateway: Gateway, path: str) -> None:
    got = gateway.post(path, {**BODIES[path], "type": "vit_x"})
    assert (got.status, got.error()["field"]) == (404, "type")
    assert "no model type 'vit_x'" in got.error()["message"]
    assert gateway.torchserve.received == []


@paths
def test_a_type_that_should_have_a_lane_is_503(gateway: Gateway, path: str) -> None:
    gateway.torchserve.lanes.clear()
    got = gateway.post(path, BODIES[path])
    assert (got.status, got.error()["code"]) == (503, "unavailable")
    assert "this server should have it" in got.error()["message"]


@paths
def test_a_body_that_torchserve_finds_too_large(gateway: Gateway, path: str) -> None:
    gateway.torchserve.script(LANES[path], answer({"code": 413, "message": "Too large."}, 413))
    got = gateway.post(path, BODIES[path])
    assert (got.status, got.error()["code"]) == (413, "too_large")
    assert "max_request_size" in got.error()["message"]


@paths
def test_no_answer_in_time_is_504(path: str) -> None:
    limits = {"prompt_timeout_s": 0.2, "automask_timeout_s": 0.2}
    with torchserve.gateway(**limits) as gateway:
        gateway.torchserve.script(LANES[path], wait_for_ever(threading.Event()))
        got = gateway.post(path, BODIES[path])
    assert (got.status, got.error()["code"]) == (504, "timeout")


@modes
def test_the_longest_accept_header(gateway: Gateway, path: str) -> None:
    longest = {"Accept": "a" * MAX_ACCEPT_BYTES}
    assert gateway.post(path, BODIES[path], longest).status == 200
    got = gateway.post(path, BODIES[path], {"Accept": "a" * (MAX_ACCEPT_BYTES + 1)})
    assert (got.status, got.error()["code"], got.error()["field"]) == (
        431,
        "header_too_large",
        "Accept",
    )
    assert len(gateway.torchserve.received) == 1


# Types for which another one stands in


@paths
def test_a_worker_learns_that_it_stands_in(path: str) -> None:
    with torchserve.gateway(stand_in="vit_t") as gateway:
        for lane in set(LANES.values()):
            gateway.torchserve.script(lane, *[answer([])] * 3)
        for model_type in ("vit_b", "sam2_l", "sam3", "vit_t"):
            assert gateway.post(path, {**BODIES[path], "type": model_type}).status == 200
        told = [r.headers.get("samserve-stand-in") for r in gateway.torchserve.received]
        assert told == ["true", "true", "true", None]
        assert {r.lane for r in gateway.torchserve.received} == {LANES[path]}


# Streams
