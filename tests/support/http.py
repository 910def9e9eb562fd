"""An ASGI application on a real socket, as the gateway runs, and requests byte for byte."""

from __future__ import annotations

import asyncio
import json
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
        """Return the content of an error, which must have the API's one shape."""
        [(key, error)] = self.json().items()
        assert key == "error"
        assert set(error) == {"code", "message", "field"}
        return error  # type: ignore[no-any-return]


@contextmanager
def serving(app: ASGIApp) -> Iterator[int]:
    """Serve the application within the block, and yield its port."""
    config = uvicorn.Config(
        app, port=0, http=Protocol, ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def lone_gateway(**settings: Any) -> ASGIApp:
    """Return a gateway without TorchServe: it answers 503 to every request that it accepts."""
    nowhere = "http://127.0.0.1:9"
    key_file = ROOT / "nowhere" / "key_file.json"
    return create_app(
        Settings(inference_url=nowhere, management_url=nowhere, key_file=key_file, **settings)
    )


def ask(
    port: int,
    method: str,
    target: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
) -> Answered:
    """Send exactly this request; other clients normalise paths and headers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, target, body, dict(headers or {}))
        response = connection.getresponse()
        return Answered(response.status, response.headers, response.read())
    finally:
        connection.close()
