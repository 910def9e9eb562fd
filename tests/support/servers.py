"""Running servers, and requests to both of their HTTP APIs: the gateway's and TorchServe's."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import requests

from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import Options, free_ports
from samserve_launcher.server import running
from tests.support.addresses import Address
from tests.support.paths import ROOT

TOKEN = "the administrator's own"
ADMIN = {"Authorization": f"Bearer {TOKEN}"}
"""The header of an administrator's request."""


@dataclass(frozen=True)
class Server:
    """A running server."""

    options: Options
    http: LoopbackSession

    def post(
        self, path: str, body: Any = None, *, content: bytes | None = None
    ) -> requests.Response:
        """Send a request to the gateway: `body` as JSON, or `content` as it is."""
        return self._post(self.options.url + path, {}, body, content)

    def predict(
        self, lane: str, body: Any = None, *, content: bytes | None = None
    ) -> requests.Response:
        """Send a request to a lane of TorchServe, past the gateway."""
        url = f"{self.options.inference_url}/predictions/{lane}"
        return self._post(url, self.authorization("inference"), body, content)

    def authorization(self, role: str) -> dict[str, str]:
        """Return the header with TorchServe's token for `inference` or `management`."""
        key = json.loads(self.options.key_file.read_text())[role]["key"]
        return {"Authorization": f"Bearer {key}"}

    def _post(
        self, url: str, headers: dict[str, str], body: Any, content: bytes | None
    ) -> requests.Response:
        content = json.dumps(body).encode() if content is None else content
        headers = {"Content-Type": "application/json", **headers}
        return self.http.post(url, data=content, headers=headers)


@contextmanager
def running_server(options: Options) -> Iterator[Server]:
    """Run a server within the block, and remove its run folder afterwards.

    It has one prompt worker unless the options say otherwise: tests count what a worker remembers.
    """
    if options.prompt_workers is None:
        options = replace(options, prompt_workers=1)
    with running(options), LoopbackSession(300) as http:
        yield Server(options, http)
    shutil.rmtree(options.run_dir)


class RestartableServer:
    """A server that a test can stop and start again, with its own weights and archives.

    Attributes:
        address: the only address from which it may download.
        folder: holds its weights and its archives.
        processes: its processes by name, `torchserve` and `gateway`.
    """

    def __init__(self, folder: Path, address: Address) -> None:
        self.address, self.folder = address, folder
        (folder / "store").mkdir()
        (folder / "weights").mkdir()
        shutil.copy(ROOT / "model_store" / "vit_t.mar", folder / "store")
        self.options = free_ports(
            Options(model_store=folder / "store", weights_dir=folder / "weights", prompt_workers=1)
        )
        self.start()

    def start(self) -> None:
        self._stack = ExitStack()
        # Closed after the server has stopped: a test may wait for an answer until then.
        http = self._stack.enter_context(LoopbackSession(300))
        self.processes = self._stack.enter_context(running(self.options))
        self.server = Server(self.options, http)

    def stop(self) -> None:
        self._stack.close()

    def get(self, path: str, **headers: str) -> requests.Response:
        return self.server.http.get(self.options.url + path, headers=headers)

    def register(self, name: str, url: str, **fields: Any) -> requests.Response:
        """Ask for the registration of weights, as the administrator."""
        return self.server.http.post(
            f"{self.options.url}/sam/weights/",
            json={"type": "vit_t", "name": name, "url": url, **fields},
            headers=ADMIN,
        )

    def files(self) -> set[str]:
        """Return the paths of all weights and archives, without the empty lock file."""
        paths = (path for path in self.folder.rglob("*") if path.is_file())
        return {str(path.relative_to(self.folder)) for path in paths} - {"weights/registered/.lock"}

    def lanes(self) -> set[str]:
        described = self.server.http.get(
            f"{self.options.management_url}/models", headers=self.server.authorization("management")
        )
        return {model["modelName"] for model in described.json()["models"]}


def port_flags(options: Options) -> list[str]:
    """Return the flags of `samserve serve` and `samserve worker` that set these ports."""
    return [f"--{name.replace('_', '-')}={port}" for name, (_, port) in options.ports().items()]
