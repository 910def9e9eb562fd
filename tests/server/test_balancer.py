"""A balancer between the gateway and TorchServe: its headers, and the requests that it loses."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

import pytest
from fastapi.testclient import TestClient

from samserve.errors import UnknownImage
from samserve_gateway.app import create_app
from samserve_gateway.retries import GRACE_S, LOOK_EVERY_S
from samserve_gateway.settings import Settings
from samserve_launcher import loopback
from samserve_launcher.options import LOOPBACK
from tests.support.bodies import automask_body, prompt_body
from tests.support.lanes import scaled
from tests.support.metrics import value_of
from tests.support.sample_pictures import new_picture
from tests.support.servers import Server

HTML = b"<html><body><h1>503 Service Unavailable</h1></body></html>"
TORCHSERVES = (
    b'{\n  "code": 503,\n  "type": "ServiceUnavailableException",\n  "message": '
    b'"Model \\"vit_t\\" has no worker to serve inference request. Please use scale workers"\n}\n'
)
UNKNOWN = UnknownImage("This picture is not remembered: send it in full.", "b64img")

Step = tuple[int, bytes] | str | float | None
"""How the balancer treats a request. A tuple: it answers so itself. `cut`: it hangs up.
`forgotten`: it never answers. A number: it passes the request on after so many seconds. None: it
passes the request on at once."""


@dataclass
class Passed:
    """A request that reached the balancer."""

    headers: dict[str, str]
    length: int


class Balancer(ThreadingHTTPServer):
    """A balancer that records the requests, and treats the first ones as `steps` say.

    It passes all others on to TorchServe.
    """

    def __init__(self, server: Server, steps: Sequence[Step]) -> None:
        self.torchserve = server
        self.passed: list[Passed] = []
        self.finished = threading.Event()
        self._remaining = list(steps)
        super().__init__((LOOPBACK, 0), _Handler)

    def next_step(self) -> Step:
        return self._remaining.pop(0) if self._remaining else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Balancer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        names = {name.lower(): value for name, value in self.headers.items()}
        self.server.passed.append(Passed(names, len(body)))
        step = self.server.next_step()
        if step == "cut":
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if isinstance(step, float):
            time.sleep(step)
        if step == "forgotten":
            self.server.finished.wait()
            return
        if isinstance(step, tuple):
            self._answer(*step, "text/html")
            return
        torchserve = self.server.torchserve
        headers = {"Content-Type": names["content-type"]}
        answer = loopback.post(
            torchserve.options.inference_url + self.path,
            300,
            data=body,
            headers={**headers, **torchserve.authorization("inference")},
        )
        self._answer(answer.status_code, answer.content, answer.headers["Content-Type"])

    def _answer(self, status: int, content: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextmanager
def balanced(
    server: Server, *steps: Step, tokens: Literal["on", "off"] = "off"
) -> Iterator[tuple[TestClient, list[Passed]]]:
    """Yield a gateway and the requests that reached its balancer."""
    balancer = Balancer(server, steps)
    threading.Thread(target=balancer.serve_forever, daemon=True).start()
    settings = Settings(
        inference_url=f"http://{LOOPBACK}:{balancer.server_port}",
        management_url=server.options.management_url,
        torchserve_tokens=tokens,
        key_file=server.options.key_file,
    )
    try:
        with TestClient(create_app(settings), base_url="http://127.0.0.1") as gateway:
            yield gateway, balancer.passed
    finally:
        balancer.finished.set()
        balancer.shutdown()
        balancer.server_close()


def retries(gateway: TestClient) -> float:
    return value_of(gateway.get("/metrics").text, "samserve_gateway_retries_total")


@pytest.mark.parametrize(
    "step", [(503, HTML), (502, HTML), (502, b""), "cut"], ids=["503", "502", "empty", "cut"]
)
def test_a_prompt_that_was_lost_is_asked_once_more(server: Any, step: Step) -> None:
    body = prompt_body(new_picture())
    with balanced(server, step) as (gateway, passed):
        answer = gateway.post("/sam/", json=body)
        assert answer.status_code == 200
        assert retries(gateway) == 1
    assert answer.json() == server.post("/sam/", body).json() != []
    assert len(passed) == 2
    assert passed[0].headers == passed[1].headers


@pytest.mark.parametrize("mode", ["prompt", "automask"])
def test_what_died_with_its_worker_is_asked_once_more(server: Any, mode: str) -> None:
    """A lane that is scaled down answers so. The dead worker does not finish the request, so no
    work is done twice."""
    died = {"code": 503, "type": "InternalServerException", "message": "Worker died."}
    path, body = ("/sam/", prompt_body) if mode == "prompt" else ("/sam/automask/", automask_body)
    with balanced(server, (503, json.dumps(died).encode())) as (gateway, passed):
        assert gateway.post(path, json=body(new_picture())).status_code == 200
        assert retries(gateway) == 1
    assert len(passed) == 2


def test_what_was_forgotten_with_a_worker_is_asked_once_more(server: Any) -> None:
    """TorchServe never answers a request that an ending worker had taken and not begun."""
    assert scaled(server, "vit_t", 2)[:2] == ["2", "2"]
    try:
        with (
            balanced(server, "forgotten", tokens="on") as (gateway, passed),
            ThreadPoolExecutor() as threads,
        ):
            asking = threads.submit(gateway.post, "/sam/", json=prompt_body(new_picture()))
            with pytest.raises(TimeoutError):  # by then the gateway has listed the lane's workers
                asking.result(timeout=3)
            scaled(server, "vit_t", 1)
            assert asking.result(timeout=60).status_code == 200
            assert len(passed) == 2  # before `retries`: /metrics sends requests to the lanes too
            assert retries(gateway) == 1
    finally:
        scaled(server, "vit_t", 1)


def test_what_only_takes_long_is_not_asked_again(server: Any) -> None:
    with balanced(server, 3 * LOOK_EVERY_S + GRACE_S, tokens="on") as (gateway, passed):
        assert gateway.post("/sam/", json=prompt_body(new_picture())).status_code == 200
        assert len(passed) == 1
        assert retries(gateway) == 0


@pytest.mark.parametrize("step", [(503, HTML), "cut"], ids=["503", "cut"])
def test_not_a_third_time(server: Any, step: Step) -> None:
    with balanced(server, step, step) as (gateway, passed):
        answer = gateway.post("/sam/", json=prompt_body(new_picture()))
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert answer.json()["error"]["code"] == "unavailable"
    assert len(passed) == 2


def test_what_torchserve_refuses_is_not_asked_again(server: Any) -> None:
    """The queue is full, and another request would only make it longer."""
    with balanced(server, (503, TORCHSERVES)) as (gateway, passed):
        answer = gateway.post("/sam/", json=prompt_body(new_picture()))
        assert retries(gateway) == 0
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert "full" in answer.json()["error"]["message"]
    assert len(passed) == 1


def test_nor_is_an_automask(server: Any) -> None:
    with balanced(server, (502, HTML), "cut") as (gateway, passed):
        for query in ("", "?stream=1"):
            answer = gateway.post(f"/sam/automask/{query}", json=automask_body(new_picture()))
            assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
    assert len(passed) == 2


def test_another_host_that_does_not_know_the_picture(server: Any) -> None:
    """The host that knew the picture is lost, with the request that sent only its digest."""
    body = prompt_body(new_picture())
    unknown = (409, json.dumps(UNKNOWN.body()).encode())
    with balanced(server, None, (502, HTML), unknown, None) as (gateway, passed):
        first = gateway.post("/sam/", json=body)
        second = gateway.post("/sam/", json=body)
    assert second.status_code == 200
    assert second.json() == first.json() != []
    assert [request.length > 2**15 for request in passed] == [True, False, False, True]


def test_the_balancer_is_told_the_picture(server: Any) -> None:
    """The digest is the same for every form of body, so the balancer picks the same host."""
    text, small = new_picture(), prompt_body("QUJD")
    digest = sha256(text.encode()).hexdigest()
    with balanced(server) as (gateway, passed):
        gateway.post("/sam/", json=prompt_body(text))
        gateway.post("/sam/", json=prompt_body(text))
        gateway.post("/sam/automask/", json=automask_body(text))
        gateway.post("/sam/", json=prompt_body(f"sha256:{digest}"))
        with gateway.stream("POST", "/sam/automask/?stream=1", json=automask_body(text)) as answer:
            answer.read()
        gateway.post("/sam/", json=small)
        gateway.post("/sam/", data={"type": "vit_t"}, files={"image": b"a file"})
        gateway.post("/sam/", json={"type": "vit_t"})
    assert [request.headers.get("x-image-digest") for request in passed] == [
        *[digest] * 5,
        sha256(b"QUJD").hexdigest(),
        sha256(b"a file").hexdigest(),
        None,
    ]
    assert not any("authorization" in request.headers for request in passed)
