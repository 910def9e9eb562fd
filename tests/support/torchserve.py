"""A stand-in for TorchServe: its HTTP APIs on a loopback socket, with scripted answers.

It knows lanes, workers and tokens as far as the gateway asks for them, and segments nothing. A test
says how a lane answers by `TorchServeStandIn.script`; without a script every prediction is `[]`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from samserve.errors import UnknownImage
from samserve_gateway.app import create_app
from samserve_gateway.settings import Settings
from tests.support.http import Answered, ask, serving

QUEUE_FULL = {
    "code": 503,
    "type": "ServiceUnavailableException",
    "message": 'Model "vit_t" has no worker to serve inference request.',
}
WORKER_DIED = {"code": 503, "type": "InternalServerException", "message": "Worker died."}
INVALID_TOKEN = {"code": 400, "type": "InvalidKeyException", "message": "Token is incorrect."}
UNKNOWN_IMAGE = UnknownImage("This picture is not remembered: send it in full.", "b64img").body()


@dataclass(frozen=True)
class Received:
    """A request for a prediction.

    Attributes:
        headers: by name in lower case.
    """

    lane: str
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        return json.loads(self.content)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def answer(content: Any, status: int = 200, **headers: str) -> Handler:
    """Return a handler that answers with this JSON, or these bytes."""

    async def handle(_: web.Request) -> web.StreamResponse:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        spelled = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(
            body=body, status=status, headers={"Content-Type": "application/json", **spelled}
        )

    return handle


def cut(when: threading.Event | None = None) -> Handler:
    """Return a handler that closes the connection, once the event is set, if one is given."""

    async def handle(request: web.Request) -> web.StreamResponse:
        if when is not None:
            await asyncio.to_thread(when.wait)
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    return handle


def wait_for_ever(begun: threading.Event) -> Handler:
    """Return a handler that never answers. It sets the event when it has the request."""

    async def handle(_: web.Request) -> web.StreamResponse:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError("nobody sets the event")

    return handle


def answer_when(begun: threading.Event, released: threading.Event) -> Handler:
    """Return a handler that sets `begun` when it has the request, and answers once released."""

    async def handle(request: web.Request) -> web.StreamResponse:
        begun.set()
        while not released.is_set():
            await asyncio.sleep(0.01)
        return await answer([])(request)

    return handle


def events(*lines: Any, then: Handler | None = None, pages: int = 1) -> Handler:
    """Return a handler that streams events, and then ends the answer or calls `then`."""

    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {"Content-Type": "application/x-ndjson", "X-Image-Pages": str(pages)}
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        for line in lines:
            await response.write(json.dumps(line).encode() + b"\n")
        if then is not None:
            await then(request)
        return response

    return handle


@dataclass
class TorchServeStandIn:
    """What the stand-in has, and what it was asked.

    Attributes:
        url: of its inference and its management API.
        lanes: the registered lanes; each has the pids of its READY workers.
        descriptions: what a worker of the lane says of itself.
        received: the requests for predictions, without the gateway's probes for readiness.
        described: the lane of each request for a description.
        probes: how the next probes are answered.
        tokens: if set, the valid token of each role, and the API key; requests must have them.
        hangs: whether the management API answers nothing.
        cut_off: lanes of another TorchServe, which the balancer does not reach.
        batch_size: of the lanes for prompts.
    """

    url: str = ""
    lanes: dict[str, set[int]] = field(
        default_factory=lambda: {"vit_t": {101}, "vit_t-automask": {102}}
    )
    descriptions: dict[str, Any] = field(
        default_factory=lambda: {
            "vit_t": {
                "weights": {
                    "type": "vit_t",
                    "name": "default",
                    "url": "https://example.org/mobile_sam.pt",
                    "source": "official",
                    "sha256": "6dbb",
                }
            }
        }
    )
    received: list[Received] = field(default_factory=list)
    described: list[str] = field(default_factory=list)
    probes: list[Handler] = field(default_factory=list)
    tokens: dict[str, str] | None = None
    key_file: Path | None = None
    hangs: bool = False
    cut_off: set[str] = field(default_factory=set)
    batch_size: int = 1
    _scripts: dict[str, list[Handler]] = field(default_factory=dict)
    _new_tokens: Iterator[int] = field(default_factory=itertools.count)

    def script(self, lane: str, *handlers: Handler) -> None:
        """Answer the next requests for this lane by these handlers, one each."""
        self._scripts.setdefault(lane, []).extend(handlers)

    def write_key_file(self, **keys: str) -> None:
        """Write the tokens to the key file, with these in place of the valid ones."""
        assert self.key_file is not None
        assert self.tokens is not None
        entries = {name: {"key": key} for name, key in {**self.tokens, **keys}.items()}
        self.key_file.write_text(json.dumps(entries))

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**26, middlewares=[self._check_token])
        app.add_routes(
            [
                web.post("/predictions/{lane}", self._predict),
                web.get("/models", self._list),
                web.get("/models/{lane}", self._describe),
                web.get("/token", self._renew_token),
            ]
        )
        return app

    @web.middleware
    async def _check_token(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        role = "inference" if request.path.startswith("/predictions") else "management"
        role = "API" if request.path == "/token" else role
        if self.tokens is not None:
            expected = f"Bearer {self.tokens[role]}"
            if request.headers.get("Authorization") != expected:
                return web.json_response(INVALID_TOKEN, status=400)
        if self.hangs and role == "management":
            await asyncio.Event().wait()
        return await handler(request)

    async def _predict(self, request: web.Request) -> web.StreamResponse:
        lane, content = request.match_info["lane"], await request.read()
        headers = {name.lower(): value for name, value in request.headers.items()}
        if "x-request-id" not in headers:  # a probe: clients' requests always have an id
            return await (self.probes.pop(0) if self.probes else answer([]))(request)
        self.received.append(Received(lane, headers, content))
        if lane not in self.lanes:
            return await self._unknown(lane)
        script = self._scripts.get(lane)
        return await (script.pop(0) if script else answer([]))(request)

    async def _list(self, request: web.Request) -> web.StreamResponse:
        names = [lane for lane in self.lanes if lane not in self.cut_off]
        if self.cut_off and not names:
            return web.Response(text="no server is available", status=503)
        return web.json_response({"models": [{"modelName": lane} for lane in names]})

    async def _describe(self, request: web.Request) -> web.StreamResponse:
        lane = request.match_info["lane"]
        if lane in self.cut_off:
            return web.Response(text="no server is available", status=503)
        if lane not in self.lanes:
            return await self._unknown(lane)
        self.described.append(lane)
        description: dict[str, Any] = {
            "minWorkers": 1,
            "batchSize": 1 if lane.endswith("-automask") else self.batch_size,
            "maxBatchDelay": 1,
            "workers": [{"pid": pid, "status": "READY"} for pid in self.lanes[lane]],
        }
        if request.query.get("customized") == "true":
            description["customizedMetadata"] = self.descriptions[lane]
        return web.json_response([description])

    async def _unknown(self, lane: str) -> web.StreamResponse:
        content = {
            "code": 404,
            "type": "ModelNotFoundException",
            "message": f"Model not found: {lane}",
        }
        return web.json_response(content, status=404)

    async def _renew_token(self, request: web.Request) -> web.StreamResponse:
        assert self.tokens is not None
        self.tokens[request.query["type"]] = f"renewed-{next(self._new_tokens)}"
        self.write_key_file()
        return web.json_response({})


@asynccontextmanager
async def on_loop(port: int = 0) -> AsyncIterator[TorchServeStandIn]:
    """Run a stand-in on the running event loop, on this port or any free one."""
    stand_in = TorchServeStandIn()
    runner = web.AppRunner(
        stand_in.app(), access_log=None, shutdown_timeout=0.01, handler_cancellation=True
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        await site.start()
        [address] = runner.addresses
        stand_in.url = f"http://127.0.0.1:{address[1]}"
        yield stand_in
    finally:
        await runner.cleanup()


@contextmanager
def running() -> Iterator[TorchServeStandIn]:
    """Run a stand-in in a thread of its own."""
    ready, stop = threading.Event(), asyncio.Event()
    loops: list[asyncio.AbstractEventLoop] = []
    stand_ins: list[TorchServeStandIn] = []

    async def serve() -> None:
        async with on_loop() as stand_in:
            loops.append(asyncio.get_running_loop())
            stand_ins.append(stand_in)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    ready.wait()
    try:
        yield stand_ins[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join()


@dataclass(frozen=True)
class Gateway:
    """A gateway on a real socket, in front of a stand-in."""

    port: int
    torchserve: TorchServeStandIn

    def post(
        self, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answered:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return ask(self.port, "POST", path, content, headers)

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answered:
        return ask(self.port, "GET", path, None, headers)

    def metrics(self) -> str:
        return self.get("/metrics").content.decode()


@contextmanager
def gateway(**settings: Any) -> Iterator[Gateway]:
    """Run a gateway, with these settings, in front of a stand-in."""
    with running() as torchserve:
        fields = {
            "inference_url": torchserve.url,
            "management_url": torchserve.url,
            "torchserve_tokens": "off",
            **settings,
        }
        with serving(create_app(Settings(**fields))) as port:
            yield Gateway(port, torchserve)
