"""The metrics pages of workers and gateway, and a request's lines in the logs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests

from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import LOOPBACK
from tests.support.bodies import automask_body, prompt_body
from tests.support.metrics import Since, value_of
from tests.support.paths import ROOT
from tests.support.redis import free_port
from tests.support.sample_pictures import new_picture
from tests.support.waiting import wait_for


def test_a_workers_metrics(server: Any) -> None:
    since = Since(server.options.metrics_url)
    known, lane = new_picture(), "vit_t"
    for _ in range(2):
        assert server.predict(lane, prompt_body(known)).status_code == 200
    prompts = [{"bbox": [20, 30, 70, 78]}] * 3
    assert server.predict(lane, prompt_body(known, prompts=prompts, bbox=None)).status_code == 200
    assert server.predict(lane, prompt_body(known, bbox=[9999, 0, 10000, 5])).status_code == 422
    assert server.predict(lane, content=b"{").status_code == 400
    requests = "samserve_requests_total"
    wait_for(lambda: since(requests, lane=lane, status="400", code="invalid_request") == 1)
    assert since(requests, lane=lane, status="200", code="ok") == 3
    assert since(requests, lane=lane, status="422", code="invalid_field") == 1
    assert since(requests, lane=lane) == 5
    assert since("samserve_embeddings_total", lane=lane, source="encoder") == 1
    assert since("samserve_embeddings_total", lane=lane, source="memory") == 3
    assert since("samserve_batch_size_sum", lane=lane) == 5
    assert since("samserve_answer_masks_count", lane=lane) == 3
    assert since("samserve_answer_masks_sum", lane=lane) == 5
    for step, times in {"embed": 4, "decode": 1, "masks": 3, "outline": 3}.items():
        assert since("samserve_step_seconds_count", lane=lane, step=step) == times
        assert since("samserve_step_seconds_sum", lane=lane, step=step) > 0
    assert since("ts_inference_requests_total", model_name=lane) == 5


def test_the_lanes_are_apart(server: Any) -> None:
    since = Since(server.options.metrics_url)
    features = server.predict("vit_t-automask", automask_body(new_picture())).json()
    wait_for(lambda: since("samserve_requests_total", lane="vit_t-automask") == 1)
    assert since("samserve_answer_masks_sum", lane="vit_t-automask") == len(features) > 0
    assert since("samserve_step_seconds_count", lane="vit_t-automask", step="masks") == 1
    assert since("samserve_requests_total", lane="vit_t") == 0


def test_what_the_management_asks_is_no_request(server: Any) -> None:
    since = Since(server.options.metrics_url)
    assert server.http.get(f"{server.options.url}/sam/weights/").status_code == 200
    assert server.predict("vit_t", content=b"{").status_code == 400
    wait_for(lambda: since("samserve_requests_total", lane="vit_t") == 1)
    assert since("samserve_requests_total", status="200") == 0


def test_the_gateways_metrics(server: Any) -> None:
    since = Since(server.options.url)
    body = prompt_body(new_picture())
    answers = [server.post("/sam/", body) for _ in range(3)]
    server.post("/sam/", {"type": "vit_t"})
    server.http.get(f"{server.options.url}/nowhere/{time.time_ns()}")
    requests, route = "samserve_gateway_requests_total", "/sam/"
    assert since(requests, route=route, status="200") == 3
    assert since(requests, route=route, status="422") == 1
    assert since(requests, route="other", status="404") == 1
    assert since("samserve_gateway_request_seconds_count", route=route) == 4
    assert since("samserve_gateway_request_seconds_sum", route=route) > 0
    assert since("samserve_gateway_received_bytes_total", route=route) > 3 * len(body["b64img"])
    sent = sum(len(answer.content) for answer in answers)
    assert since("samserve_gateway_sent_bytes_total", route=route) > sent
    assert since("samserve_gateway_pictures_total", outcome="known") == 2
    assert since("samserve_gateway_pictures_total", outcome="full") == 2
    page = since.page()
    assert value_of(page, "samserve_gateway_in_flight", route="/metrics") == 1
    assert value_of(page, "samserve_gateway_in_flight", route=route) == 0
    for lane in ("vit_t", "vit_t-automask"):
        assert value_of(page, "samserve_gateway_ready_workers", lane=lane) == 1
        assert value_of(page, "samserve_gateway_lane_ready", lane=lane) == 1


def test_the_page_is_no_api(server: Any) -> None:
    document = server.http.get(f"{server.options.url}/openapi.json").json()
    assert "/metrics" not in document["paths"]


def entries(log: Path) -> list[dict[str, Any]]:
    """Return every line of a log. Each must be JSON."""
    return [json.loads(line) for line in log.read_text().splitlines()]


def test_a_request_in_the_workers_log(server: Any) -> None:
    request_id = f"test-{time.time_ns()}"
    answer = server.http.post(
        f"{server.options.url}/sam/",
        json=prompt_body(new_picture()),
        headers={"X-Request-Id": request_id},
    )
    assert answer.headers["X-Request-Id"] == request_id
    logs = server.options.run_dir / "logs"
    wait_for(lambda: request_id in (logs / "torchserve.log").read_text())
    lines = entries(logs / "torchserve.log")
    [line] = [entry for entry in lines if entry.get("request_id") == request_id]
    assert (line["lane"], line["status"], line["code"]) == ("vit_t", 200, "ok")
    # The job id links them to TorchServe's lines.
    assert any(line["job"] in entry["message"] and "thread" in entry for entry in lines)
    assert not any(entry["message"].startswith("[METRICS]") for entry in lines)
    assert entries(logs / "access.log")


@pytest.mark.parametrize(
    "sent", ["", "a b", "x" * 200, 'a"b'], ids=["none", "space", "long", "quote"]
)
def test_a_request_that_brings_no_sane_id(server: Any, sent: str) -> None:
    answer = server.http.get(f"{server.options.url}/healthz", headers={"X-Request-Id": sent})
    assert answer.headers["X-Request-Id"] not in ("", sent)


def test_the_gateways_log(server: Any, tmp_path: Path) -> None:
    port, log = free_port(), tmp_path / "log"
    url = f"http://{LOOPBACK}:{port}"
    environ = {
        "SAMSERVE_PORT": str(port),
        "SAMSERVE_INFERENCE_URL": server.options.inference_url,
        "SAMSERVE_MANAGEMENT_URL": server.options.management_url,
        "SAMSERVE_KEY_FILE": str(server.options.key_file),
        "SAMSERVE_LOG_LEVEL": "info",
    }
    with log.open("wb") as output:
        gateway = subprocess.Popen(
            [sys.executable, "-m", "samserve_gateway"],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        with LoopbackSession(60) as http:

            def answers() -> bool:
                try:
                    return http.get(f"{url}/healthz").status_code == 200
                except requests.RequestException:
                    return False

            wait_for(answers)
            for request_id in ("first", "second"):
                http.post(
                    f"{url}/sam/",
                    json={"type": "vit_t"},
                    headers={"X-Request-Id": request_id},
                )
    finally:
        gateway.terminate()
        gateway.wait()
    lines = {entry["request_id"]: entry for entry in entries(log) if entry.get("status") == 422}
    assert list(lines) == ["first", "second"]
    assert lines["first"]["method"] == "POST"
    assert lines["first"]["route"] == "/sam/"
    assert lines["first"]["seconds"] > 0
