"""The routes: samapi's API, readiness and the OpenAPI pages.

A body is forwarded to TorchServe as it came, but for a picture that is known there
(`pictures.py`); of it only `type` is read, which says the lane. TorchServe's answers are
passed on as they are, but for the refusals that TorchServe itself makes (no such lane, queue
full, worker gone): those are put into the one error shape,
`{"error": {"code", "message", "field"}}`.

Segments nothing and keeps no picture: that is the worker's part.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from samserve import __version__
from samserve.errors import NotFound, SamserveError, TooLarge, error_body
from samserve.model_types import MODEL_TYPES
from samserve.requests import RoutedRequest

from . import docs
from .pictures import KnownPictures
from .readiness import Readiness
from .settings import Settings, automask_lane
from .torchserve import Answer, TorchServe, TorchServeError, message_of

DRAIN_FACTOR = 4
"""How much of an over-long body is still read: a client gets to see the answer only once
it has sent its body, but nobody may send for ever."""


def create_app(settings: Settings) -> FastAPI:
    """The gateway as an ASGI application."""
    torchserve = TorchServe(settings.inference_url, settings.management_url, settings.key_file)
    readiness = Readiness(torchserve, settings)
    pictures = KnownPictures(torchserve)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with torchserve:
            yield
            await readiness.close()

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
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(TorchServeError)
    async def fail(_: Request, error: TorchServeError) -> JSONResponse:
        if error.status == 504:
            return JSONResponse(error_body("timeout", str(error)), 504)
        return JSONResponse(error_body("unavailable", str(error)), 503, {"Retry-After": "1"})

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
        body, model_type = await routed(request)
        return await forward(model_type, model_type, body, settings.prompt_timeout_s)

    @app.post("/sam/automask/", **docs.AUTOMASK)
    async def automask(request: Request) -> Response:
        body, model_type = await routed(request)
        lane = automask_lane(model_type)
        return await forward(lane, model_type, body, settings.automask_timeout_s)

    @app.get("/sam/version/", response_class=PlainTextResponse, **docs.VERSION)
    async def version() -> str:
        return __version__

    @app.get("/sam/weights/", **docs.WEIGHTS)
    async def weights(type: str | None = None) -> list[dict[str, Any]]:
        loaded = await _model_types(torchserve)
        if type is not None and type not in loaded:
            return []
        wanted = loaded if type is None else [type]
        return [(await torchserve.worker_description(lane))["weights"] for lane in wanted]

    @app.get("/healthz", **docs.HEALTHZ)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", **docs.READYZ)
    async def readyz() -> JSONResponse:
        ready, lanes = await readiness.check()
        return JSONResponse({"ready": ready, "lanes": lanes}, 200 if ready else 503)

    async def forward(lane: str, model_type: str, body: bytes, timeout_s: float) -> Response:
        answer = await pictures.predict(lane, model_type, body, timeout_s)
        if answer.status == 404 and not _is_ours(answer):
            raise await _not_loaded(torchserve, model_type)
        if answer.status == 413 and not _is_ours(answer):
            raise TooLarge("The body is larger than TorchServe's max_request_size.")
        if answer.status >= 400 and not _is_ours(answer):
            raise TorchServeError(message_of(answer), answer.status)
        headers = (
            {"Server-Timing": timing} if (timing := answer.headers.get("Server-Timing")) else {}
        )
        return Response(answer.content, answer.status, headers, "application/json")

    async def routed(request: Request) -> tuple[bytes, str]:
        """The body and the model type it asks for, which is one we know."""
        body = await _read(request, settings.max_body_bytes)
        model_type = RoutedRequest.parse(body).type
        if model_type not in MODEL_TYPES:
            raise await _not_loaded(torchserve, model_type)
        return body, model_type

    return app


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
    models = " ".join([*loaded, model_type])
    return NotFound(
        f"Model type {model_type} is not loaded. Loaded: {names}. "
        f"Add it with: make serve MODELS='{models}'",
        "type",
    )


def _is_ours(answer: Answer) -> bool:
    """Whether a refusal comes from our worker, not from TorchServe itself."""
    return answer.content.startswith(b'{"error":')
