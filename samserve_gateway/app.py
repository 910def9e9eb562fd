"""The routes: samapi's API, readiness and the OpenAPI pages.

A body is decompressed (`decompression.py`) and turned into UTF-8 (`samserve.serving.json_text`).
A picture that the workers know is replaced by its digest (`known_pictures.py`). The rest is
forwarded unchanged. Only `type` and `checkpoint_url` are read, because they choose the lane.
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
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import ASGIApp

from samserve import __version__
from samserve.errors import (
    HeaderTooLarge,
    InvalidField,
    SamserveError,
    TooLarge,
    Unauthorized,
    UnsupportedEncoding,
    error_body,
)
from samserve.serving import logs
from samserve.serving.lanes import lane_of, model_type_of
from samserve.serving.requests import RoutedRequest

from . import decompression, openapi
from .bodies import Body, body_of
from .compression import compressed
from .jobs import Jobs, while_client_waits
from .known_pictures import KnownPictures, refused
from .metrics import CONTENT_TYPE_LATEST, Metrics
from .paths import Paths
from .readiness import Readiness
from .registration import RegisterRequest, Registration
from .request_log import REQUEST_ID, Observed
from .retries import Repeats
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

MAX_ACCEPT_BYTES = 2**12
"""TorchServe takes 8 KiB of headers in all, and else tells nobody why it refuses."""

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
    weights = Weights(torchserve, settings.stand_in, settings.models.split())
    readiness = Readiness(torchserve, settings, weights.joining)
    registration = Registration(torchserve, weights, readiness, settings)
    metrics = Metrics()
    pictures = KnownPictures(lambda outcome: metrics.pictures.labels(outcome).inc())
    jobs = Jobs(settings.jobs_directory)
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
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,  # `Paths` knows every spelling
    )
    app.openapi = lambda: openapi.openapi(app)  # type: ignore[method-assign]

    @app.exception_handler(SamserveError)
    async def refuse(_: Request, error: SamserveError) -> JSONResponse:
        asks = None
        if isinstance(error, Unauthorized):
            asks = {"WWW-Authenticate": "Bearer"}
        elif isinstance(error, UnsupportedEncoding):
            asks = {"Accept-Encoding": decompression.READ}
        return JSONResponse(error.body(), error.status, asks)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = str(first["loc"][-1])
        return await refuse(request, InvalidField(f"{name}: {first['msg']}.", name))

    @app.exception_handler(TorchServeError)
    async def fail(_: Request, error: TorchServeError) -> JSONResponse:
        status, said = failure(error)
        return JSONResponse(said, status)

    @app.exception_handler(HTTPException)
    async def explain(request: Request, error: HTTPException) -> JSONResponse:
        phrase = HTTPStatus(error.status_code).phrase
        code = phrase.lower().replace(" ", "_")
        headers = dict(error.headers or {})
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            # The framework lists the methods of one route, but a path may have several routes.
            headers["Allow"] = ", ".join(_methods(app, request.scope["path"]))
        return JSONResponse(error_body(code, f"{phrase}."), error.status_code, headers)

    @app.exception_handler(ClientDisconnect)
    async def forget(_: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    @app.exception_handler(Exception)
    async def apologise(_: Request, error: Exception) -> JSONResponse:
        message = "The gateway failed on this request; its log says why."
        return JSONResponse(error_body("internal_error", message), 500)

    @app.post("/sam/", **openapi.PROMPT)
    async def prompt(request: Request) -> Response:
        body, family = await routed(request)
        lane, timeout_s = lane_of(family, "prompt"), settings.prompt_timeout_s
        answer = await predict(lane, family, body, accepted(request), timeout_s, quick=True)
        return await passed_on(request, family, answer)

    @app.post("/sam/automask/", **openapi.AUTOMASK)
    async def automask(request: Request, stream: bool = False) -> Response:
        body, family = await routed(request)
        lane, timeout_s = lane_of(family, "automask"), settings.automask_timeout_s
        if stream:
            return await streamed(request, lane, family, body, timeout_s)
        with jobs.job() as headers:
            work = predict(lane, family, body, {**accepted(request), **headers}, timeout_s)
            answer = await while_client_waits(request, work)
        return await passed_on(request, family, answer)

    @app.get("/sam/progress/", **openapi.PROGRESS)
    async def progress() -> dict[str, Any]:
        return registration.progress() or jobs.progress()

    @app.get("/sam/version/", response_class=PlainTextResponse, **openapi.VERSION)
    async def version() -> str:
        return __version__

    @app.get("/sam/weights/", **openapi.WEIGHTS)
    async def registered(type: str | None = None) -> list[dict[str, str]]:
        if type is None:
            return await weights.registered(await weights.loaded())
        return await weights.choices(type)

    @app.post("/sam/weights/", response_class=PlainTextResponse, **openapi.REGISTER)
    async def register(request: Request) -> str:
        registration.authorize(request.headers.get("authorization"))
        asked = RegisterRequest.parse(await _read(request, MAX_REGISTRATION_BYTES))
        if asked.type not in await weights.loaded():
            raise await weights.not_loaded(asked.type)
        return await while_client_waits(request, registration.register(asked))

    @app.get("/sam/weights/cancel/", response_class=PlainTextResponse, **openapi.CANCEL)
    async def cancel(request: Request) -> str:
        registration.authorize(request.headers.get("authorization"))
        registration.cancel()
        return "Cancel signal sent"

    @app.get("/healthz", **openapi.HEALTHZ)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", **openapi.READYZ)
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
                sent |= {"Samserve-Stream": "true", **stands_in(request)}
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
            headers = stack.enter_context(jobs.job())
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
            raise await weights.not_loaded(model_type_of(family))
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
        """The body and the family of lanes that answers it: of the type that it asks for, or of
        the one that stands in for that; then the worker is to be told (`stands_in`)."""
        content = await _read(request, settings.max_body_bytes)
        content_type = request.headers.get("content-type", "")
        # In a thread: a form made of what nearly are boundaries takes seconds to be taken apart.
        body = await asyncio.to_thread(body_of, content, content_type)
        asked = RoutedRequest.parse(body.json)
        model_type = await weights.answering(asked.type)
        request.state.stands_in = model_type != asked.type
        return body, await weights.family(model_type, asked.checkpoint_url, asked.type)

    routes = {route.path for route in app.routes if isinstance(route, Route)}
    return Paths(Observed(app, metrics, routes), routes)


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
    """Return what the worker learns: the output formats that the client reads, and `stands_in`.

    Raises:
        HeaderTooLarge: the client names more formats than TorchServe takes.
    """
    accept = ", ".join(request.headers.getlist("accept"))
    size = len(accept.encode())
    if size > MAX_ACCEPT_BYTES:
        raise HeaderTooLarge(
            f"The header Accept has {size} bytes; it may have {MAX_ACCEPT_BYTES}.", "Accept"
        )
    return {**stands_in(request), **({"Accept": accept} if accept else {})}


def stands_in(request: Request) -> dict[str, str]:
    """What tells the worker that it was chosen in place of the type that the body names."""
    return {"Samserve-Stand-In": "true"} if request.state.stands_in else {}


async def _read(request: Request, limit: int) -> bytes:
    """The request's body, decompressed; memory never holds much more of it than the limit.

    Raises:
        TooLarge: it has more bytes than `limit`, as sent or decompressed.
        UnsupportedEncoding: it is compressed in a way that is not read here.
        InvalidRequest: it cannot be decompressed.
    """
    encoding = decompression.encoding_of(", ".join(request.headers.getlist("content-encoding")))
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
    content = b"".join(chunks)
    if encoding is None:
        return content
    return await asyncio.to_thread(decompression.decoded, content, encoding, limit)


def _methods(app: FastAPI, path: str) -> list[str]:
    """What may be asked of this path."""
    routes = [route for route in app.routes if isinstance(route, Route) and route.path == path]
    return sorted({method for route in routes for method in route.methods or ()})
