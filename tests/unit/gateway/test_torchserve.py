"""The client of TorchServe's APIs if several TorchServes are behind one address."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from samserve_gateway.torchserve import TorchServe, TorchServeError

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
