"""Streams of events, and automasks whose client disconnects."""

from __future__ import annotations

import base64
import json
import socket
import threading
from hashlib import sha256
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from samserve.serving.jobs import JobFolder
from tests.support import torchserve
from tests.support.torchserve import (
    QUEUE_FULL,
    Gateway,
    answer,
    cut,
    events,
    wait_for_ever,
)
from tests.support.waiting import wait_for

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


def lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def connect(gateway: Gateway, path: str) -> socket.socket:
    """Send an automask, and return the connection on which its answer would come."""
    content = json.dumps(AUTOMASK).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    connection.sendall(head.encode() + content)
    return connection


def stream(gateway: Gateway) -> Any:
    return gateway.post("/sam/automask/?stream=1", AUTOMASK)


def test_a_stream_of_events(gateway: Gateway) -> None:
    gateway.torchserve.script("vit_t-automask", events(*STREAM, pages=3))
    got = stream(gateway)
    assert (got.status, got.headers["Content-Type"]) == (200, "application/x-ndjson")
    assert got.headers["X-Image-Pages"] == "3"
    assert lines(got.content) == STREAM


def test_a_stream_that_breaks_off_ends_with_an_error_event(gateway: Gateway) -> None:
    read = threading.Event()
    gateway.torchserve.script("vit_t-automask", events(STREAM[0], then=cut(when=read)))
    with connect(gateway, "/sam/automask/?stream=1") as connection:
        response = HTTPResponse(connection)
        response.begin()
        assert response.status == 200
        assert json.loads(response.readline()) == STREAM[0]
        read.set()
        [last] = lines(response.read())
    assert last["event"] == "error"
    assert last["error"]["code"] == "unavailable"
    assert set(last["error"]) == {"code", "message", "field"}
    # Its picture is not known: it was not answered to the end.
    gateway.torchserve.script("vit_t-automask", events(*STREAM))
    assert lines(stream(gateway).content) == STREAM
    assert [r.json()["b64img"] for r in gateway.torchserve.received] == [PICTURE] * 2


def test_a_stream_that_takes_too_long_ends_with_an_error_event() -> None:
    with torchserve.gateway(automask_timeout_s=0.3) as gateway:
        endless = wait_for_ever(threading.Event())
        gateway.torchserve.script("vit_t-automask", events(STREAM[0], then=endless))
        *before, last = lines(stream(gateway).content)
    assert before == [STREAM[0]]
    assert (last["event"], last["error"]["code"]) == ("error", "timeout")


def test_a_refusal_in_place_of_a_stream_is_an_ordinary_answer(gateway: Gateway) -> None:
    refusal = {"error": {"code": "invalid_image", "message": "Why.", "field": "b64img"}}
    gateway.torchserve.script("vit_t-automask", answer(refusal, 422), answer(QUEUE_FULL, 503))
    got = stream(gateway)
    assert (got.status, got.json()) == (422, refusal)
    assert got.headers["Content-Type"] == "application/json"
    full = stream(gateway)
    assert (full.status, full.headers["Retry-After"]) == (503, "1")
    assert (full.error()["code"], "queue is full" in full.error()["message"]) == ("busy", True)


# Clients that go away


@pytest.mark.parametrize("path", ["/sam/automask/", "/sam/automask/?stream=1"])
def test_a_client_that_goes_cancels_its_automask(path: str, tmp_path: Path) -> None:
    begun = threading.Event()
    with torchserve.gateway(jobs_directory=tmp_path) as gateway:
        gateway.torchserve.script("vit_t-automask", wait_for_ever(begun))
        with connect(gateway, path):
            assert begun.wait(30)
            job_id = gateway.torchserve.received[0].headers["samserve-job"]
            assert not JobFolder(tmp_path).is_cancelled(job_id)
        wait_for(lambda: JobFolder(tmp_path).is_cancelled(job_id))


def test_a_reader_of_events_that_goes_cancels_its_automask(tmp_path: Path) -> None:
    begun = threading.Event()
    with torchserve.gateway(jobs_directory=tmp_path) as gateway:
        endless = events(STREAM[0], then=wait_for_ever(begun))
        gateway.torchserve.script("vit_t-automask", endless)
        with connect(gateway, "/sam/automask/?stream=1") as connection:
            received = b""
            while b'"progress"' not in received:
                received += connection.recv(2**16)
        job_id = gateway.torchserve.received[0].headers["samserve-job"]
        wait_for(lambda: JobFolder(tmp_path).is_cancelled(job_id))


@pytest.mark.parametrize("path", ["/sam/automask/", "/sam/automask/?stream=1"])
def test_an_automask_that_ends_leaves_no_files(path: str, tmp_path: Path) -> None:
    with torchserve.gateway(jobs_directory=tmp_path) as gateway:
        good = events(*STREAM) if "stream" in path else answer([])
        gateway.torchserve.script("vit_t-automask", good)
        assert gateway.post(path, AUTOMASK).status == 200
        job_id = gateway.torchserve.received[0].headers["samserve-job"]
    assert len(job_id) == 32
    assert list(tmp_path.iterdir()) == []
