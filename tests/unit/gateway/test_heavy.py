"""Prompts that take much work go on to the automask lane, and no client sees that."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from samserve.errors import Heavy
from samserve_gateway.heavy_pictures import LARGE_BYTES
from tests.support import torchserve
from tests.support.torchserve import (
    QUEUE_FULL,
    UNKNOWN_IMAGE,
    Gateway,
    answer,
    answer_when,
    wait_for_ever,
)

PICTURE = base64.b64encode(bytes(range(256)) * 128).decode()
PROMPT = {"type": "vit_t", "bbox": [1, 2, 3, 4], "b64img": PICTURE}
HEAVY = Heavy("This takes more work than the prompt lane does for one request.").body()


def limited(tmp_path: Path, **settings: object) -> dict[str, object]:
    """Return the settings of a gateway in front of one TorchServe, with its tokens."""
    key_file = tmp_path / "key_file.json"
    key_file.write_text(json.dumps({k: {"key": k} for k in ("inference", "management", "API")}))
    return {"torchserve_tokens": "on", "key_file": key_file, **settings}


def sent(gateway: Gateway) -> list[tuple[str, str | None, bool]]:
    """Return the lane of each request, its mode, and whether it had the picture."""
    return [
        (received.lane, received.headers.get("x-mode"), PICTURE.encode() in received.content)
        for received in gateway.torchserve.received
    ]


def test_a_heavy_prompt_is_answered_by_the_automask_lane(gateway: Gateway) -> None:
    gateway.torchserve.script("vit_t", answer(HEAVY, 421))
    gateway.torchserve.script("vit_t-automask", answer([{"a": 1}], X_Image_Pages="3"))
    got = gateway.post("/sam/", PROMPT, {"Accept": "application/geo+json"})
    assert (got.status, got.json(), got.headers["X-Image-Pages"]) == (200, [{"a": 1}], "3")
    first, second = gateway.torchserve.received
    assert (first.lane, second.lane) == ("vit_t", "vit_t-automask")
    assert first.content == second.content
    assert "x-mode" not in first.headers
    differing = {**first.headers, "x-mode": "prompt", "host": second.headers["host"]}
    assert second.headers == differing


def test_its_picture_goes_there_directly_until_it_is_known(gateway: Gateway) -> None:
    refusal = {"error": {"code": "invalid_field", "message": "Why.", "field": "bbox"}}
    gateway.torchserve.script("vit_t", answer(HEAVY, 421))
    gateway.torchserve.script("vit_t-automask", answer(refusal, 422), answer([]))
    assert gateway.post("/sam/", PROMPT).status == 422
    for _ in range(3):
        assert gateway.post("/sam/", PROMPT).status == 200
    assert sent(gateway) == [
        ("vit_t", None, True),
        ("vit_t-automask", "prompt", True),
        ("vit_t-automask", "prompt", True),
        ("vit_t", None, False),  # the workers know it now: a click on it is an ordinary one
        ("vit_t", None, False),
    ]
    other = {**PROMPT, "b64img": PICTURE[4:]}
    assert gateway.post("/sam/", other).status == 200
    assert sent(gateway)[-1][:2] == ("vit_t", None)


def test_a_digest_that_both_lanes_have_forgotten_is_sent_in_full(gateway: Gateway) -> None:
    assert gateway.post("/sam/", PROMPT).status == 200
    gateway.torchserve.script("vit_t", answer(HEAVY, 421))
    gateway.torchserve.script("vit_t-automask", answer(UNKNOWN_IMAGE, 409))
    assert gateway.post("/sam/", PROMPT).status == 200
    assert sent(gateway)[1:] == [
        ("vit_t", None, False),
        ("vit_t-automask", "prompt", False),
        ("vit_t", None, True),
    ]


def test_a_large_body_goes_there_directly(gateway: Gateway) -> None:
    body = json.dumps({**PROMPT, "b64img": "A" * LARGE_BYTES}).encode()
    assert gateway.post("/sam/", body).status == 200
    assert [received.lane for received in gateway.torchserve.received] == ["vit_t-automask"]


@pytest.mark.parametrize(
    ("handler", "status", "code"),
    [
        (answer(HEAVY, 421), 503, "unavailable"),
        (answer(QUEUE_FULL, 503), 503, "busy"),
        (answer({"error": {"code": "too_large", "message": ".", "field": None}}, 413), 413, None),
    ],
)
def test_a_421_never_reaches_a_client(
    gateway: Gateway, handler: torchserve.Handler, status: int, code: str | None
) -> None:
    gateway.torchserve.script("vit_t", answer(HEAVY, 421))
    gateway.torchserve.script("vit_t-automask", handler)
    got = gateway.post("/sam/", PROMPT)
    assert (got.status, got.error()["code"]) == (status, code or "too_large")


def test_a_workers_deadline_is_the_clients(tmp_path: Path) -> None:
    times = {"prompt_timeout_s": 100, "automask_timeout_s": 1000}
    with torchserve.gateway(**limited(tmp_path, **times)) as gateway:
        gateway.torchserve.script("vit_t", answer(HEAVY, 421))
        before = time.time()
        assert gateway.post("/sam/", PROMPT).status == 200
        assert gateway.post("/sam/automask/", PROMPT).status == 200
        assert gateway.post("/sam/automask/?stream=1", PROMPT).status == 200
        prompt, heavy, *automasks = (
            float(received.headers["x-deadline"]) for received in gateway.torchserve.received
        )
        assert before + 99 <= prompt <= time.time() + 100
        assert heavy == prompt  # the time is for both together
        for deadline in automasks:
            assert before + 999 <= deadline <= time.time() + 1000


def test_on_several_machines_there_is_no_deadline(gateway: Gateway) -> None:
    """The clocks of the machines may differ."""
    for path in ("/sam/", "/sam/automask/", "/sam/automask/?stream=1"):
        assert gateway.post(path, PROMPT).status == 200
    assert not any("x-deadline" in received.headers for received in gateway.torchserve.received)


def test_a_heavy_prompt_waits_no_longer_than_a_prompt_may(tmp_path: Path) -> None:
    begun, released = threading.Event(), threading.Event()
    settings = limited(tmp_path, prompt_timeout_s=0.5)
    with torchserve.gateway(**settings) as gateway, ThreadPoolExecutor(1) as pool:
        gateway.torchserve.script("vit_t-automask", answer_when(begun, released))
        automask = pool.submit(gateway.post, "/sam/automask/", PROMPT)
        try:
            assert begun.wait(30)
            gateway.torchserve.script("vit_t", answer(HEAVY, 421))
            got = gateway.post("/sam/", PROMPT)
        finally:
            released.set()
        assert automask.result().status == 200
    assert (got.status, got.error()["code"]) == (504, "timeout")
    assert "large work was under way" in got.error()["message"]
    assert [lane for lane, _, _ in sent(gateway)] == ["vit_t-automask", "vit_t"]


def test_no_answer_to_a_heavy_prompt_in_time(gateway: Gateway) -> None:
    with torchserve.gateway(prompt_timeout_s=0.3) as impatient:
        impatient.torchserve.script("vit_t", answer(HEAVY, 421))
        impatient.torchserve.script("vit_t-automask", wait_for_ever(threading.Event()))
        got = impatient.post("/sam/", PROMPT)
    assert (got.status, got.error()["code"]) == (504, "timeout")
