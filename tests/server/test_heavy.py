"""Through TorchServe: heavy requests leave the prompt lane, and late ones are not computed."""

from __future__ import annotations

import time
from typing import Any

import psutil
import pybase64
import pytest
import requests

from tests.support.hostile_pictures import interlaced_png
from tests.support.lanes import pids_of
from tests.support.sample_pictures import base64_png, picture

CLICK = {"type": "vit_t", "bbox": [20, 30, 70, 78], "b64img": base64_png(picture("coins"))}
HEAVY = {
    **CLICK,
    "bbox": [10, 10, 900, 900],
    "b64img": pybase64.b64encode(interlaced_png(6001)).decode(),
}
MANY = {**CLICK, "bbox": None, "prompts": [{"bbox": [20, 30, 70, 78]}] * 200}


def ask(server: Any, lane: str, body: Any, **headers: str) -> requests.Response:
    url = f"{server.options.inference_url}/predictions/{lane}"
    headers |= server.authorization("inference")
    response: requests.Response = server.http.post(url, json=body, headers=headers)
    return response


@pytest.mark.parametrize("body", [HEAVY, MANY], ids=["a large picture", "many prompts"])
def test_a_heavy_request_is_answered_by_the_automask_lane(server: Any, body: Any) -> None:
    workers = {lane: pids_of(server, lane) for lane in ("vit_t", "vit_t-automask")}
    refused = ask(server, "vit_t", body)
    assert refused.status_code == 421
    assert refused.json()["error"]["code"] == "heavy"
    answer = ask(server, "vit_t-automask", body, **{"X-Mode": "prompt"})
    assert answer.status_code == 200, answer.text[:300]
    assert len(answer.json()) <= len(body.get("prompts") or [0])
    assert {lane: pids_of(server, lane) for lane in workers} == workers


def test_the_lanes_know_each_others_pictures(server: Any) -> None:
    """A picture that the automask lane has decoded is light in the prompt lane."""
    heavy = {**HEAVY, "b64img": pybase64.b64encode(interlaced_png(6002)).decode()}
    assert ask(server, "vit_t", heavy).status_code == 421
    first = ask(server, "vit_t-automask", heavy, **{"X-Mode": "prompt"})
    known = ask(server, "vit_t", heavy)
    assert known.status_code == first.status_code == 200
    assert known.json() == first.json()
    assert 'embed;desc="machine"' in known.headers["Server-Timing"]


def test_a_late_request_is_not_computed(server: Any) -> None:
    for lane in ("vit_t", "vit_t-automask"):
        late = ask(server, lane, CLICK, **{"X-Deadline": str(time.time() - 1)})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "timeout")
    assert ask(server, "vit_t", CLICK, **{"X-Deadline": "soon"}).status_code == 400
    assert ask(server, "vit_t", CLICK, **{"X-Deadline": str(time.time() + 60)}).ok


def test_a_worker_that_is_killed_takes_its_decoder_along(server: Any) -> None:
    [pid] = pids_of(server, "vit_t")
    decoders = psutil.Process(pid).children(recursive=True)
    assert any("samserve.pictures.decoder_child" in child.cmdline() for child in decoders)
    psutil.Process(pid).kill()
    _, alive = psutil.wait_procs(decoders, timeout=20)
    assert not alive
    deadline = time.monotonic() + 120
    while not ask(server, "vit_t", CLICK).ok:
        assert time.monotonic() < deadline
        time.sleep(0.5)
