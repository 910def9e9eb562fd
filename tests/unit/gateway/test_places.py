"""A client that leaves keeps its place until TorchServe is done, whatever it asked for."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.support import torchserve
from tests.support.metrics import value_of
from tests.support.torchserve import Gateway, answer, answer_when, events
from tests.support.waiting import wait_for

BODY = {"type": "vit_t", "bbox": [1, 2, 3, 4], "points_per_side": 2, "b64img": "QUJD"}
PATHS = {"/sam/": 8, "/sam/automask/": 1, "/sam/automask/?stream=1": 1}
"""Each path, and how many requests TorchServe gets at first."""


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Gateway]:
    key_file = tmp_path / "key_file.json"
    key_file.write_text(json.dumps({k: {"key": k} for k in ("inference", "management", "API")}))
    with torchserve.gateway(torchserve_tokens="on", key_file=key_file) as gateway:
        gateway.torchserve.batch_size = 4
        yield gateway


def send(gateway: Gateway, path: str) -> socket.socket:
    body = json.dumps(BODY).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    client = socket.create_connection(("127.0.0.1", gateway.port), timeout=30)
    client.sendall(head + body)
    return client


def waiting(gateway: Gateway) -> float:
    return value_of(gateway.metrics(), "samserve_gateway_waiting")


def in_flight(gateway: Gateway) -> float:
    page = gateway.metrics()
    routes = ("/sam/", "/sam/automask/")
    return sum(value_of(page, "samserve_gateway_in_flight", route=route) for route in routes)


@pytest.mark.parametrize("path", PATHS)
def test_leavers_do_not_fill_torchserve(gateway: Gateway, path: str) -> None:
    inside, lane = PATHS[path], "vit_t" if path == "/sam/" else "vit_t-automask"
    begun = [threading.Event() for _ in range(inside)]
    released = threading.Event()
    # A worker embeds one new picture at a time, so the picture is made known first.
    assert gateway.post("/sam/", BODY).status == 200
    before = len(gateway.torchserve.received)
    gateway.torchserve.script(lane, *(answer_when(event, released) for event in begun))
    clients = [send(gateway, path) for _ in range(inside)]
    assert all(event.wait(30) for event in begun)
    clients += [send(gateway, path) for _ in range(20)]
    wait_for(lambda: waiting(gateway) == 20)
    for client in clients:
        client.close()
    wait_for(lambda: in_flight(gateway) == 0)
    assert waiting(gateway) == 0
    last = send(gateway, path)
    wait_for(lambda: waiting(gateway) == 1)  # those that left still have their places
    assert len(gateway.torchserve.received) == before + inside
    released.set()
    assert last.recv(100).startswith(b"HTTP/1.1 200")
    last.close()
    assert len(gateway.torchserve.received) == before + inside + 1


def test_a_stream_whose_client_leaves_in_the_middle(gateway: Gateway) -> None:
    begun, released = threading.Event(), threading.Event()

    async def go_on(request: web.Request) -> web.StreamResponse:
        return await answer_when(begun, released)(request)

    progress = {"event": "progress", "done": 1, "total": 4}
    gateway.torchserve.script("vit_t-automask", events(progress, then=go_on), answer([]))
    leaving = send(gateway, "/sam/automask/?stream=1")
    received = b""
    while b"progress" not in received:
        received += leaving.recv(2000)
    leaving.close()
    wait_for(lambda: in_flight(gateway) == 0)
    last = send(gateway, "/sam/automask/")
    wait_for(lambda: waiting(gateway) == 1)
    assert len(gateway.torchserve.received) == 1
    released.set()
    assert last.recv(100).startswith(b"HTTP/1.1 200")
    last.close()
