"""Every error becomes an answer in the one shape, `{"error": {"code", "message", "field"}}`.

The gateway refuses in two more places: `protocol.py` refuses what is not HTTP, and
`forwarding.py` ends a stream of events with an `error` event.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from samserve.errors import (
    InvalidField,
    SamserveError,
    TryLater,
    Unauthorized,
    UnsupportedEncoding,
    error_body,
)

from . import decompression
from .routes.weights import CANCEL_PATH
from .torchserve_answers import TorchServeError

logger = logging.getLogger(__name__)

LOGS = (
    "the server's logs say why: run/<port>/logs, or those of its containers. Lines about this "
    "request have its id, the answer's X-Request-Id."
)
"""What a failure tells the operator. The ids are in `request_log.py`."""


def add_to(app: FastAPI) -> None:
    """Install the handlers of all errors."""
    app.exception_handler(SamserveError)(refuse)
    app.exception_handler(RequestValidationError)(refuse_parameter)
    app.exception_handler(TorchServeError)(report_torchserve)
    app.exception_handler(HTTPException)(refuse_address)
    app.exception_handler(ClientDisconnect)(end_without_client)
    app.exception_handler(Exception)(report_failure)


async def refuse(_: Request, error: SamserveError) -> JSONResponse:
    """Answer a request that the client got wrong."""
    return refusal(error)


def refusal(error: SamserveError) -> JSONResponse:
    """Return the answer to a request that the client got wrong."""
    headers = None
    if isinstance(error, Unauthorized):
        headers = {"WWW-Authenticate": "Bearer"}
    elif isinstance(error, UnsupportedEncoding):
        headers = {"Accept-Encoding": decompression.READ}
    elif isinstance(error, TryLater):
        headers = {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.body(), error.status, headers)


async def refuse_parameter(request: Request, error: RequestValidationError) -> JSONResponse:
    """Answer a request whose query parameter has a wrong value. Names the first such parameter."""
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return await refuse(request, InvalidField(f"{name}: {first['msg']}.", name))


async def report_torchserve(request: Request, error: TorchServeError) -> JSONResponse:
    """Answer a request that TorchServe did not answer."""
    log_detail(error)
    status, content = torchserve_failure(error)
    request.state.retry_after_s = error.retry_after_s  # see `request_log.py`
    return JSONResponse(content, status)


async def refuse_address(request: Request, error: HTTPException) -> JSONResponse:
    """Answer a request to an unknown path, or with a method that the path does not have."""
    phrase = HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_")
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        # The framework lists the methods of one route, but a path may have several routes.
        headers["Allow"] = ", ".join(_methods(request.app.routes, request.scope))
    return JSONResponse(error_body(code, f"{phrase}."), error.status_code, headers)


async def end_without_client(_: Request, error: ClientDisconnect) -> Response:
    """End a request whose client has disconnected. The answer reaches nobody."""
    return Response(status_code=400)


async def report_failure(_: Request, error: Exception) -> JSONResponse:
    """Answer a request on which the gateway itself failed."""
    message = f"The gateway failed on this request; {LOGS}"
    return JSONResponse(error_body("internal_error", message), 500)


def log_detail(error: TorchServeError) -> None:
    """Log what the client does not read of TorchServe's refusal."""
    if error.detail:
        logger.warning("%s %s", error, error.detail)


def torchserve_failure(error: TorchServeError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of the answer if TorchServe gave none."""
    if error.status == 504:
        advice = "It hangs, or has too much to do. Try again in a minute. If that does not help,"
        return 504, error_body("timeout", f"{error} {advice} {LOGS}")
    advice = f"Try again in {error.retry_after_s} s. If that does not help,"
    return 503, error_body("unavailable", f"{error} {advice} {LOGS}")


def _methods(routes: Iterable[BaseRoute], scope: Scope) -> list[str]:
    """Return the methods of all routes with the path of this request."""
    methods = set()
    for route in routes:
        if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE:
            methods |= route.methods or set()
            if "GET" in methods and route.path != CANCEL_PATH:  # see `HeadAsGet`
                methods.add("HEAD")
    return sorted(methods)
