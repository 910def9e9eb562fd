"""A registration of weights with its surroundings, of which every part can be made to fail.

A small program replaces the process that registers weights, and a subclass of the client replaces
TorchServe.
"""

from __future__ import annotations

import asyncio
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from samserve_gateway.readiness import Readiness
from samserve_gateway.registration import RegisterRequest, Registration
from samserve_gateway.settings import Settings
from samserve_gateway.torchserve import Answer, TorchServe, TorchServeError
from samserve_gateway.weights import Weights

TOKEN = "a token of some length"
DEFAULT = {"type": "vit_t", "name": "default", "url": "https://example.org/mobile_sam.pt"}
ASKED = RegisterRequest(type="vit_t", name="mine", url="mine.pt")

PLACES_ALL = """
kept = Path(request["weights_dir"], "registered")
(kept / "vit_t.mine.pt").touch()
(kept / "vit_t.mine.json").touch()
(kept / "vit_t.mine-compiled").mkdir()
(kept / "vit_t.mine-compiled" / "encoder.xml").touch()
Path(request["model_store"], "vit_t.mine.mar").touch()
Path(request["models_dir"], "vit_t.mine").mkdir(parents=True)
say(registered={})
"""


class Lanes(TorchServe):
    """A TorchServe whose lanes have no workers.

    Attributes:
        refuses: lanes that cannot be created.
        mute: lanes that do not answer.
        making: set once the creation of a lane has begun.
    """

    def __init__(self) -> None:
        super().__init__("", "", Path())
        own = {"minWorkers": 2, "maxWorkers": 3, "batchSize": 4, "maxBatchDelay": 1, "workers": []}
        self.there: dict[str, dict[str, Any]] = {"vit_t": own, "vit_t-automask": own}
        self.refuses: set[str] = set()
        self.mute: set[str] = set()
        self.making = asyncio.Event()

    async def lanes(self, timeout_s: float = 30) -> list[str]:
        return list(self.there)

    async def lane(self, name: str, timeout_s: float = 30) -> dict[str, Any]:
        return self.there[name]

    async def worker_description(self, name: str) -> dict[str, Any]:
        if name in self.mute:
            raise TorchServeError("no answer", 504)
        return {"weights": DEFAULT if name == "vit_t" else {**DEFAULT, **ASKED.model_dump()}}

    async def register(self, name: str, archive: str, **settings: Any) -> None:
        if name in self.refuses:
            raise TorchServeError("Failed to start workers", 500)

        async def make() -> None:
            self.making.set()
            await asyncio.sleep(0.1)
            self.there[name] = {"archive": archive, "settings": settings, "workers": []}

        # TorchServe creates the lane even if the request is cancelled.
        await asyncio.shield(asyncio.create_task(make()))

    async def unregister(self, name: str) -> None:
        self.there.pop(name, None)

    async def predict(self, lane: str, *_: Any) -> Answer:
        return Answer(500 if lane in self.mute else 200, {}, b"")


class Bench:
    """A registration with its folders, its process and its TorchServe."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.weights_dir, self.store = folder / "weights", folder / "store"
        self.weights_dir.mkdir()
        self.store.mkdir()
        self.models_dir = folder / "models"
        self._job = folder / "register.py"
        command = (sys.executable, str(self._job))
        monkeypatch.setattr("samserve_gateway.registration.COMMAND", command)
        monkeypatch.setenv("SAMSERVE_ADMIN_TOKEN", TOKEN)
        self.torchserve = Lanes()
        settings = Settings(
            weights_dir=self.weights_dir,
            model_store=self.store,
            models_dir=self.models_dir,
            admin_token=SecretStr(TOKEN),
        )
        self.weights = Weights(self.torchserve)
        readiness = Readiness(self.torchserve, settings, self.weights.joining)
        self.registration = Registration(self.torchserve, self.weights, readiness, settings)

    def job(self, program: str) -> None:
        """Set the program that the process runs after it has read its request."""
        beginning = """
            import json, os, subprocess, sys, time
            from pathlib import Path
            request = json.load(sys.stdin)
            def say(**event):
                print(json.dumps(event), flush=True)
            Path(request["incoming"], "half").touch()
            parts = Path(request["parts"])
            parts.mkdir(exist_ok=True)
            (parts / "beginning").touch()
        """
        self._job.write_text(textwrap.dedent(beginning) + textwrap.dedent(program))

    def register(self) -> str:
        return asyncio.run(self.registration.register(ASKED))

    def left(self) -> set[str]:
        """Return the files and lanes besides those of before the registration."""
        folders = (self.weights_dir, self.store, self.models_dir)
        files = [path for folder in folders for path in folder.rglob("*")]
        names = {path.name for path in files if path.name not in ("registered", ".lock")}
        return names | set(self.torchserve.there) - {"vit_t", "vit_t-automask"}
