"""The gateway's queues in front of a real TorchServe: leaving, waiting, taking turns."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from samserve_gateway.app import create_app
from samserve_gateway.keys import Key, add, digest_of
from samserve_gateway.settings import Settings
from tests.support.bodies import automask_body, prompt_body
from tests.support.http import Answered, ask, serving
from tests.support.metrics import Since
from tests.support.sample_pictures import new_picture

CLIENTS = 100
INSIDE = 8
"""Prompts that TorchServe gets for one worker: two batches of four."""


@contextmanager
def gateway(server: Any, **settings: Any) -> Iterator[int]:
    """Run another gateway in front of the server's TorchServe, and yield its port."""
    options = server.options
    fields = {
        "inference_url": options.inference_url,
        "management_url": options.management_url,
        "key_file": options.key_file,
        "jobs_directory": options.jobs_dir,
        **settings,
    }
    with serving(create_app(Settings(**fields))) as port:
        yield port


def post(port: int, path: str, body: Any, **headers: str) -> Answered:
    spelled = {name.replace("_", "-"): value for name, value in headers.items()}
    return ask(port, "POST", path, json.dumps(body).encode(), spelled)


def test_prompts_of_clients_that_left_are_not_computed(server: Any) -> None:
    body = json.dumps(prompt_body(new_picture())).encode()
    head = b"POST /sam/ HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with gateway(server) as port:
        assert ask(port, "POST", "/sam/", body).status == 200
        computed = Since(server.options.metrics_url)
        with ExitStack() as leaving:
            for _ in range(CLIENTS):
                client = socket.create_connection(("127.0.0.1", port))
                leaving.callback(client.close)
                client.sendall(request)
        # TorchServe keeps the order: these are computed after all that it had before.
        for _ in range(2):
            assert ask(port, "POST", "/sam/", body).status == 200
        done = computed("samserve_requests_total", lane="vit_t")
    # Some are answered while the others still arrive. Without the queue it would be all.
    assert done < CLIENTS - INSIDE


def test_a_full_queue_refuses_at_once_and_answers_what_it_has_accepted(server: Any) -> None:
    body = prompt_body(new_picture())
    with gateway(server, queue_size=4) as port, ThreadPoolExecutor(40) as pool:
        assert post(port, "/sam/", body).status == 200
        answers = list(pool.map(lambda _: post(port, "/sam/", body), range(200)))
        assert post(port, "/sam/", body).status == 200
    refused = [answer for answer in answers if answer.status == 503]
    answered = [answer for answer in answers if answer.status == 200]
    assert len(refused) + len(answered) == len(answers)
    # Batches of different sizes differ in the last digits of a quality.
    assert len({str(answer.json()[0]["geometry"]) for answer in answered}) == 1
    assert len(answered) >= INSIDE
    assert refused
    for answer in refused:
        assert answer.error()["code"] == "busy"
        assert "The queue is full: 4 requests wait for vit_t." in answer.error()["message"]
        assert int(answer.headers["Retry-After"]) >= 1


def test_clients_take_turns_with_automasks(server: Any, tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        add(tmp_path / "keys", Key(name, digest_of(name.encode())))
    body = {**automask_body(new_picture()), "points_per_side": 12}
    ended: list[str] = []

    def automask(name: str, port: int) -> int:
        got = post(port, "/sam/automask/", body, X_API_Key=name)
        ended.append(name)
        return got.status

    with (
        gateway(server, api_keys_file=tmp_path / "keys") as port,
        ThreadPoolExecutor(6) as pool,
    ):
        asked = [pool.submit(automask, "alice", port) for _ in range(4)]
        time.sleep(0.2)  # alice's first is under way, and her others wait
        asked.append(pool.submit(automask, "bob", port))
        assert [one.result() for one in asked] == [200] * 5
    assert ended.index("bob") <= 2


@pytest.mark.parametrize("path", ["/sam/automask/", "/sam/automask/?stream=1"])
def test_an_automask_that_waits_and_leaves_is_never_begun(server: Any, path: str) -> None:
    body = json.dumps({**automask_body(new_picture()), "points_per_side": 16}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    with gateway(server) as port, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, port, "POST", "/sam/automask/", body)
        time.sleep(0.3)
        computed = Since(server.options.metrics_url)
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(head + body)
                time.sleep(0.05)
        assert first.result().status == 200
        assert ask(port, "POST", "/sam/automask/", body).status == 200
        assert computed("samserve_requests_total", lane="vit_t-automask", status="503") == 0
