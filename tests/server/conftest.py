"""A real TorchServe with the real archive, and the gateway in front of it, once for all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx2 as httpx
import pytest

from scripts.options import Options, free_ports
from scripts.server import running


@dataclass(frozen=True)
class Server:
    """The running server and its two doors."""

    options: Options
    http: httpx.Client

    def post(self, path: str, body: Any = None, *, content: bytes | None = None) -> httpx.Response:
        """To the gateway; `content` where the body is not meant to be JSON."""
        return self._post(self.options.url + path, {}, body, content)

    def predict(
        self, lane: str, body: Any = None, *, content: bytes | None = None
    ) -> httpx.Response:
        """To TorchServe itself."""
        url = f"{self.options.inference_url}/predictions/{lane}"
        return self._post(url, self.authorization("inference"), body, content)

    def authorization(self, role: str) -> dict[str, str]:
        key = json.loads(self.options.key_file.read_text())[role]["key"]
        return {"Authorization": f"Bearer {key}"}

    def _post(
        self, url: str, headers: dict[str, str], body: Any, content: bytes | None
    ) -> httpx.Response:
        content = json.dumps(body).encode() if content is None else content
        headers = {"Content-Type": "application/json", **headers}
        return self.http.post(url, content=content, headers=headers)


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    options = free_ports(Options())
    with running(options), httpx.Client(timeout=300, trust_env=False) as http:
        yield Server(options, http)
    shutil.rmtree(options.run_dir)


@pytest.fixture(params=["gateway", "torchserve"])
def door(request: pytest.FixtureRequest, server: Server) -> Any:
    """`post(mode, body)` through either door; the answers must be the same."""

    def post(mode: str, body: Any = None, *, content: bytes | None = None) -> httpx.Response:
        if request.param == "gateway":
            path = "/sam/" if mode == "prompt" else "/sam/automask/"
            return server.post(path, body, content=content)
        lane = "vit_t" if mode == "prompt" else "vit_t-automask"
        return server.predict(lane, body, content=content)

    return post
