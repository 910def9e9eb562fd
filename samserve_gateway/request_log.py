"""The gateway's outermost layer: every request gets its id, is counted, timed and logged.

The client's own `X-Request-Id` is kept where it is sane; else there is a new one. It goes on to
TorchServe and the worker (`logs.request_id()`), stands in every line that is logged on the way,
and in the answer. A 503 tells when to try again, whoever it comes from.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from samserve.serving import logs

from .metrics import Metrics

logger = logging.getLogger(__name__)

REQUEST_ID = "X-Request-Id"
RETRY_AFTER_S = 1


class Observed:
    """An ASGI application around another.

    Args:
        routes: the paths that are counted each by itself; all others are one.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = frozenset(routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        route = scope["path"] if scope["path"] in self._routes else "other"
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if logs.is_request_id(given) else secrets.token_hex(16)
        status, received, sent = 500, 0, 0

        async def counted_receive() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            return message

        async def counted_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers[REQUEST_ID] = request_id
                if status == 503:
                    headers.setdefault("Retry-After", str(RETRY_AFTER_S))
            sent += len(message.get("body", b""))
            await send(message)

        start = time.perf_counter()
        self._metrics.in_flight.labels(route).inc()
        logs.begin(request_id)  # for good: a request has a task of its own
        try:
            await self._app(scope, counted_receive, counted_send)
        finally:
            seconds = time.perf_counter() - start
            self._metrics.in_flight.labels(route).dec()
            self._metrics.requests.labels(route, status).inc()
            self._metrics.seconds.labels(route).observe(seconds)
            self._metrics.received.labels(route).inc(received)
            self._metrics.sent.labels(route).inc(sent)
            logger.log(
                # Not to be ready yet is an answer, not a failure.
                logging.WARNING if status >= 500 and route != "/readyz" else logging.INFO,
                "Answered.",
                extra={
                    "fields": {
                        "method": scope["method"],
                        "route": route,
                        "status": status,
                        "seconds": round(seconds, 4),
                        "received": received,
                        "sent": sent,
                    }
                },
            )
