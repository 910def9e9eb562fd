"""The routes: samapi's API, readiness and the OpenAPI pages.

A body is forwarded to TorchServe as it came, but for a picture that is known there
(`pictures.py`); of it only `type` and `checkpoint_url` are read, which say the lane.
TorchServe's answers are passed on as they are, but for the refusals that TorchServe itself
makes (no such lane, queue full, worker gone): those are put into the one error shape,
`{"error": {"code", "message", "field"}}`.

Segments nothing and keeps no picture: that is the worker's part.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from http import HTTPStatus
from typing import Any

import aiohttp
import orjson
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from samserve import __version__, logs
from samserve.errors import NotFound, SamserveError, TooLarge, Unauthorized, error_body
from samserve.lanes import lane_of, model_type_of
from samserve.model_types import MODEL_TYPES
from samserve.requests import RoutedRequest

from . import docs
from .bodies import Body, body_of
from .compression import compressed
from .metrics import CONTENT_TYPE_LATEST, Metrics
from .observed import REQUEST_ID, Observed
from .pictures import KnownPictures, refused
from .readiness import Readiness
from .registration import RegisterRequest, Registration
from .repeats import Repeats
from .runs import Runs, while_client_waits
from .settings import Settings
from .torchserve import (
    Answer,
    TorchServe,
    TorchServeError,
    is_workers,
    message_of,
    read,
)
from .weights import Weights

EVENTS = "application/x-ndjson"

PAGES = "X-Image-Pages"
"""The worker's: how many pages the picture has."""

MAX_REGISTRATION_BYTES = 2**16

DRAIN_FACTOR = 4
"""How much of an over-long body is still read: a client gets to see the answer only once
it has sent its body, but nobody may send for ever."""

SCRAPE_TIMEOUT_S = 5.0
"""Prometheus waits for ten; no answer of TorchServe's is one, too."""


def create_app(settings: Settings) -> ASGIApp:
    """The gateway as an ASGI application."""
    torchserve = TorchServe(
        settings.inference_url,
        settings.management_url,
        settings.key_file if settings.torchserve_tokens == "on" else None,
        settings.models.split(),
    )
    weights = Weights(torchserve)
    readiness = Readiness(torchserve, settings, weights.joining)
    registration = Registration(torchserve, weights, readiness, settings)
    metrics = Metrics()
    pictures = KnownPictures(lambda outcome: metrics.pictures.labels(outcome).inc())
    runs = Runs(settings.runs_directory)
    repeats = Repeats(
        torchserve,
        watch=settings.torchserve_tokens == "on",  # without, there are several, behind a balancer
        on_repeat=metrics.retries.inc,
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with torchserve:
            yield
            await readiness.close()
            await repeats.close()

    app = FastAPIOffline(
        redoc_url=None,
        title="samserve",
        version=__version__,
        description=docs.DESCRIPTION,
        lifespan=lifespan,
    )
    app.openapi = lambda: docs.openapi(app)  # type: ignore[method-assign]

    @app.exception_handler(SamserveError)
    async def refuse(_: Request, error: SamserveError) -> JSONResponse:
        asks = {"WWW-Authenticate": "Bearer"} if isinstance(error, Unauthorized) else None
        return JSONResponse(error.body(), error.status, asks)

    @app.exception_handler(TorchServeError)
    async def fail(_: Request, error: TorchServeError) -> JSONResponse:
        status, said = failure(error)
        return JSONResponse(said, status)

    @app.exception_handler(HTTPException)
    async def explain(_: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_")
        return JSONResponse(error_body(code, f"{phrase}."), error.status_code, error.headers)

    @app.exception_handler(ClientDisconnect)
    async def forget(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    @app.exception_handler(Exception)
    async def apologise(_: Request, error: Exception) -> JSONResponse:
        message = "The gateway failed on this request; its log says why."
        return JSONResponse(error_body("internal_error", message), 500)

    @app.post("/sam/", **docs.PROMPT)
    async def prompt(request: Request) -> Response:
        body, family = await routed(request)
        lane, timeout_s = lane_of(family, "prompt"), settings.prompt_timeout_s
        answer = await predict(lane, family, body, accepted(request), timeout_s, quick=True)
        return await passed_on(request, family, answer)

    @app.post("/sam/automask/", **docs.AUTOMASK)
    async def automask(request: Request, stream: bool = False) -> Response:
        body, family = await routed(request)
        lane, timeout_s = lane_of(family, "automask"), settings.automask_timeout_s
        if stream:
            return await streamed(request, lane, family, body, timeout_s)
        with runs.run() as headers:
            work = predict(lane, family, body, {**accepted(request), **headers}, timeout_s)
            answer = await while_client_waits(request, work)
        return await passed_on(request, family, answer)

    @app.get("/sam/progress/", **docs.PROGRESS)
    async def progress() -> dict[str, Any]:
        return registration.progress() or runs.progress()

    @app.get("/sam/version/", response_class=PlainTextResponse, **docs.VERSION)
    async def version() -> str:
        return __version__

    @app.get("/sam/weights/", **docs.WEIGHTS)
    async def registered(type: str | None = None) -> list[dict[str, str]]:
        return await weights.registered(await _model_types(torchserve) if type is None else [type])

    @app.post("/sam/weights/", response_class=PlainTextResponse, **docs.REGISTER)
    async def register(request: Request) -> str:
        registration.authorize(request.headers.get("authorization"))
        asked = RegisterRequest.parse(await _read(request, MAX_REGISTRATION_BYTES))
        if asked.type not in await _model_types(torchserve):
            raise await _not_loaded(torchserve, asked.type)
        return await while_client_waits(request, registration.register(asked))

    @app.get("/sam/weights/cancel/", response_class=PlainTextResponse, **docs.CANCEL)
    async def cancel(request: Request) -> str:
        registration.authorize(request.headers.get("authorization"))
        registration.cancel()
        return "Cancel signal sent"

    @app.get("/healthz", **docs.HEALTHZ)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", **docs.READYZ)
    async def readyz() -> JSONResponse:
        ready, lanes = await readiness.check()
        return JSONResponse({"ready": ready, "lanes": lanes}, 200 if ready else 503)

    @app.get("/metrics", include_in_schema=False)
    async def page_of_metrics() -> Response:
        try:
            _, lanes = await asyncio.wait_for(readiness.check(), SCRAPE_TIMEOUT_S)
        except asyncio.TimeoutError:
            lanes = readiness.unreachable()
        return Response(metrics.page(lanes), media_type=CONTENT_TYPE_LATEST)

    async def predict(
        lane: str,
        family: str,
        body: Body,
        headers: dict[str, str],
        timeout_s: float,
        *,
        quick: bool = False,
    ) -> Answer:
        for content, content_type in pictures.ways(family, body):
            sent = {**headers, **named(body), "Content-Type": content_type}
            answer = await repeats.ask(lane, content, sent, timeout_s, quick=quick)
            if not refused(answer.status):
                break
        if answer.status == 200:
            pictures.remember(family, body)
        return answer

    async def streamed(
        request: Request, lane: str, family: str, body: Body, timeout_s: float
    ) -> Response:
        """The worker's events as they come; an answer as any other where it refuses."""

        async def opened() -> aiohttp.ClientResponse:
            for content, content_type in pictures.ways(family, body):
                sent = {**headers, **named(body), "Content-Type": content_type}
                sent["Samserve-Stream"] = "true"
                response = await stack.enter_async_context(
                    torchserve.stream(lane, content, sent, timeout_s)
                )
                if not refused(response.status):
                    break
            return response

        async def parts() -> AsyncIterator[bytes]:
            try:
                async with own:
                    async for part in response.content.iter_any():
                        yield part
                    pictures.remember(family, body)
            except TorchServeError as error:
                _, said = failure(error)
                yield orjson.dumps({"event": "error", **said}) + b"\n"

        async with AsyncExitStack() as stack:
            headers = stack.enter_context(runs.run())
            response = await while_client_waits(request, opened())
            if response.headers.get("Content-Type") == EVENTS:
                own = stack.pop_all()
                said = {n: response.headers[n] for n in (PAGES,) if n in response.headers}
                return StreamingResponse(parts(), headers=said, media_type=EVENTS)
            answer = await read(response)
        return await passed_on(request, family, answer)

    async def passed_on(request: Request, family: str, answer: Answer) -> Response:
        """TorchServe's answer as the client's."""
        if answer.status == 404 and not is_workers(answer):
            weights.forget(family)
            raise await _not_loaded(torchserve, model_type_of(family))
        if answer.status == 413 and not is_workers(answer):
            raise TooLarge("The body is larger than TorchServe's max_request_size.")
        if answer.status >= 400 and not is_workers(answer):
            raise TorchServeError(message_of(answer), answer.status)
        kept = ("Content-Type", "Server-Timing", PAGES)
        headers = {name: answer.headers[name] for name in kept if name in answer.headers}
        headers["Vary"] = "Accept, Accept-Encoding"
        content, encoding = await compressed(
            answer.content, request.headers.get("accept-encoding", "")
        )
        if encoding is not None:
            headers["Content-Encoding"] = encoding
        return Response(content, answer.status, headers)

    async def routed(request: Request) -> tuple[Body, str]:
        """The body and the family of lanes that it asks for, whose type is one we know."""
        content = await _read(request, settings.max_body_bytes)
        body = await body_of(content, request.headers.get("content-type", ""))
        asked = RoutedRequest.parse(body.json)
        if asked.type not in MODEL_TYPES:
            raise await _not_loaded(torchserve, asked.type)
        return body, await weights.family(asked.type, asked.checkpoint_url)

    return Observed(app, metrics, {route.path for route in app.routes if isinstance(route, Route)})


def failure(error: TorchServeError) -> tuple[int, dict[str, Any]]:
    """Status and body of an answer where TorchServe gave none of the worker's."""
    if error.status == 504:
        return 504, error_body("timeout", str(error))
    return 503, error_body("unavailable", str(error))


def named(body: Body) -> dict[str, str]:
    """What a request is known by on its way: to the logs, and to a balancer that sends all of a
    picture's where its embedding is."""
    headers = {REQUEST_ID: logs.request_id() or ""}
    if body.reference is not None:
        headers["X-Image-Digest"] = body.reference.removeprefix("sha256:")
    return headers


def accepted(request: Request) -> dict[str, str]:
    """What the client says of the forms that it reads."""
    accept = request.headers.get("accept")
    return {} if accept is None else {"Accept": accept}


async def _read(request: Request, limit: int) -> bytes:
    """The request's body; memory never holds more of it than the limit.

    Raises:
        TooLarge: it has more bytes than `limit`.
    """
    chunks: list[bytes] = []
    seen = 0
    async for chunk in request.stream():
        seen += len(chunk)
        if seen <= limit:
            chunks.append(chunk)
        elif seen > DRAIN_FACTOR * limit:
            break
    if seen > limit:
        raise TooLarge(f"The body is larger than this server's limit of {limit} bytes.")
    return b"".join(chunks)


async def _model_types(torchserve: TorchServe) -> list[str]:
    return [lane for lane in await torchserve.lanes() if lane in MODEL_TYPES]


async def _not_loaded(torchserve: TorchServe, model_type: str) -> NotFound:
    loaded = await _model_types(torchserve)
    names = " ".join(loaded) or "none"
    if model_type not in MODEL_TYPES:
        return NotFound(
            f"There is no model type {model_type!r}; there are {', '.join(MODEL_TYPES)}. "
            f"Loaded: {names}.",
            "type",
        )
    if model_type in loaded:
        return NotFound("These weights are registered no longer.", "checkpoint_url")
    models = " ".join([*loaded, model_type])
    return NotFound(
        f"Model type {model_type} is not loaded. Loaded: {names}. "
        f"Add it with: make serve MODELS='{models}'",
        "type",
    )
