"""Runs an ASGI application on a real socket, as `samserve_gateway.__main__` does."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPMessage
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from samserve_gateway.app import create_app
from samserve_gateway.listening import OpenSockets
from samserve_gateway.protocol import Protocol
from samserve_gateway.settings import Settings
from tests.support.paths import ROOT


@dataclass(frozen=True)
class Answered:
    """An HTTP answer."""

    status: int
    headers: HTTPMessage
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)

    def error(self) -> dict[str, Any]:
        """Return the error, which must have the one shape of all errors."""
        [(key, error)] = self.json().items()
        assert key == "error"
        assert set(error) == {"code", "message", "field"}
        return error  # type: ignore[no-any-return]


class _Server(uvicorn.Server):
    """A server that ends without uvicorn's pauses of 0.1 s."""

    async def main_loop(self) -> None:
        await self.on_tick(0)
        while not self.should_exit:
            await asyncio.sleep(0.005)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        while self.server_state.connections or self.server_state.tasks:
            await asyncio.sleep(0.005)
        await self.lifespan.shutdown()


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """Run the application within the block, and yield its port."""
    config = uvicorn.Config(
        app, port=0, http=Protocol, ws="none", log_config=None, access_log=False
    )
    server = _Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def lone_gateway(sockets: OpenSockets | None = None, **settings: Any) -> ASGIApp:
    """Return a gateway whose TorchServe is down: every request that it does not refuse gets 503.

    Args:
        sockets: the connections of its listening sockets.
    """
    nowhere = "http://127.0.0.1:9"
    key_file = ROOT / "nowhere" / "key_file.json"
    return create_app(
        Settings(inference_url=nowhere, management_url=nowhere, key_file=key_file, **settings),
        sockets,
    )


def ask(
    port: int,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answered:
    """Send exactly this request; other clients normalise paths and headers. Return the answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        return Answered(response.status, response.headers, response.read())
    finally:
        connection.close()
