"""Gives every request its id, counts and times it, and logs it.

A client's own `X-Request-Id` is kept if it has a valid form; otherwise the request gets a new one.
The id goes to TorchServe and the worker (`logs.request_id()`), and is in every log line about the
request and in the answer. Every 503, whatever its origin, gets a Retry-After header: that of its
own, or what the state `retry_after_s` says, or a second.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samserve.serving import logs
from samserve.serving.headers import REQUEST_ID

from .metrics import Metrics

logger = logging.getLogger(__name__)

RETRY_AFTER_S = 1


class RequestLog:
    """An ASGI application that wraps another one, and records each of its requests.

    Args:
        routes: the paths that are counted each by itself. All others are counted as `other`.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and record it when its answer has been sent."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._routes else "other"
        client_id = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = client_id if logs.is_request_id(client_id) else secrets.token_hex(16)
        status, received, sent, busy = 500, 0, 0, False
        state = scope.setdefault("state", {})  # all copies of the scope have the same one

        async def count_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def count_send(message: Message) -> None:
            nonlocal status, sent, busy
            if message["type"] == "http.response.start":
                status = message["status"]
                busy = status == 503 and "retry-after" in Headers(scope=message)
                retry_after_s = state.get("retry_after_s", RETRY_AFTER_S)
                _complete(MutableHeaders(scope=message), request_id, status, retry_after_s)
            sent += len(message.get("body", b""))
            await send(message)

        start = time.perf_counter()
        self._metrics.in_flight.labels(route).inc()
        logs.begin(request_id)  # never ended: the request has an asyncio task of its own
        try:
            await self._app(scope, count_receive, count_send)
        finally:
            seconds = time.perf_counter() - start
            self._count(route, status, seconds, received, sent)
            # `/readyz` answers 503 until the server is ready, and a full queue has its own log line
            # (`queues.py`). Neither is a failure of this request.
            failed = status >= 500 and route != "/readyz" and not busy
            _log(scope["method"], route, status, seconds, received, sent, failed=failed)

    def record_refusal(self, request_id: str, status: int, code: str, sent: int) -> None:
        """Record a request that was refused before its address was known (`protocol.py`)."""
        self._metrics.requests.labels("other", status).inc()
        self._metrics.sent.labels("other").inc(sent)
        fields = {"request_id": request_id, "status": status, "code": code, "sent": sent}
        logger.info("Refused.", extra={"fields": fields})

    def _count(self, route: str, status: int, seconds: float, received: int, sent: int) -> None:
        self._metrics.in_flight.labels(route).dec()
        self._metrics.requests.labels(route, status).inc()
        self._metrics.seconds.labels(route).observe(seconds)
        self._metrics.received.labels(route).inc(received)
        self._metrics.sent.labels(route).inc(sent)


def _complete(headers: MutableHeaders, request_id: str, status: int, retry_after_s: int) -> None:
    """Add the headers that every answer has."""
    headers[REQUEST_ID] = request_id
    if status == 503:
        headers.setdefault("Retry-After", str(retry_after_s))


def _log(
    method: str, route: str, status: int, seconds: float, received: int, sent: int, *, failed: bool
) -> None:
    level = logging.WARNING if failed else logging.INFO
    if not logger.isEnabledFor(level):
        return
    fields = {
        "method": method,
        "route": route,
        "status": status,
        "seconds": round(seconds, 4),
        "received": received,
        "sent": sent,
    }
    logger.log(level, "Answered.", extra={"fields": fields})
