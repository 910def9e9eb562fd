"""The client of TorchServe's APIs if several TorchServes are behind one address."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from samserve_gateway.torchserve import SENT_AT_ONCE_BYTES, TorchServe, TorchServeError
from samserve_gateway.torchserve_answers import ConnectionLost
from tests.support import torchserve

LISTS: Mapping[str, list[str]] = {
    "vit_t": ["vit_t", "vit_t-automask"],
    "vit_b": ["vit_b", "vit_b-automask"],
}


def lanes(*model_types: str, up: tuple[str, ...] = tuple(LISTS)) -> list[str]:
    """Return the client's list for these types behind a balancer that reaches those in `up`."""

    async def models(request: web.Request) -> web.Response:
        if request.query["type"] not in up:
            return web.Response(status=503, text="No worker is ready.")
        names = LISTS[request.query["type"]]
        return web.json_response({"models": [{"modelName": name} for name in names]})

    async def ask() -> list[str]:
        app = web.Application()
        app.add_routes([web.get("/models", models)])
        async with TestServer(app) as server:
            url = str(server.make_url("")).rstrip("/")
            async with TorchServe(url, url, None, model_types) as torchserve:
                return await torchserve.lanes()

    return asyncio.run(ask())


def test_the_lists_of_all_types() -> None:
    assert lanes("vit_t", "vit_b") == [*LISTS["vit_t"], *LISTS["vit_b"]]


def test_a_type_that_is_down_takes_no_other_with_it() -> None:
    assert lanes("vit_t", "vit_b", up=("vit_b",)) == LISTS["vit_b"]


def test_none_at_all_is_an_error() -> None:
    with pytest.raises(TorchServeError, match="HTTP 503"):
        lanes("vit_t", "vit_b", up=())


@pytest.mark.parametrize("size", [SENT_AT_ONCE_BYTES, SENT_AT_ONCE_BYTES + 1, 2**24])
def test_a_large_body_arrives_whole_also_when_it_is_sent_again(tmp_path: Path, size: int) -> None:
    body, headers = b"a" * size, {"Content-Type": "application/json", "X-Request-Id": "a"}

    async def send() -> None:
        async with torchserve.on_loop() as stand_in:
            stand_in.tokens = {"inference": "new", "management": "m", "API": "a"}
            stand_in.key_file = tmp_path / "key_file.json"
            stand_in.write_key_file(inference="old")  # it is refused
            async with TorchServe(stand_in.url, stand_in.url, stand_in.key_file) as client:
                assert (await client.predict("vit_t", body, headers, 30)).status == 200
            [received] = stand_in.received
            assert received.content == body

    asyncio.run(send())


def test_a_connection_that_nobody_takes_is_lost_before_it_is_a_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So a prompt is sent again. An address that is no longer used refuses nothing."""
    monkeypatch.setattr("samserve_gateway.torchserve.CONNECT_TIMEOUT_S", 0.5)

    async def ask(url: str) -> None:
        async with TorchServe(url, url, None) as gone:
            await gone.predict("vit_t", b"{}", {}, 60)

    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):  # the kernel then drops the next connection
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        with pytest.raises(ConnectionLost, match="took no connection within 1 s"):
            asyncio.run(ask(f"http://127.0.0.1:{full.getsockname()[1]}"))
