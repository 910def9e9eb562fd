"""Makes the gateway: its parts, its routes, and what surrounds them.

A request passes, from the outside in:

- `keyring.py`: an API key in the path is taken out;
- `paths.py`: one spelling for each path;
- `request_log.py`: the request's id, log line and metrics;
- `security_headers.py`: what a browser must not do with the answer;
- `access.py`: no request without a key, if keys are wanted, and none beyond its client's share;
- `body_budget.py`: the request's share of the memory for bodies;
- `refusals.py`: every error becomes an answer in the one shape;
- `routes/`: samapi's API, health and metrics, the page at `/`, the `/docs` page;
- `forwarding.py`: from the body to a lane of TorchServe, and its answer back to the client.

The gateway segments nothing and keeps no picture; the workers do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp, Scope

from samserve import __version__
from samserve.serving.headers import (
    IMAGE_PAGES,
    OBJECTS,
    PREFER,
    PREFERENCE_APPLIED,
    QUALITY,
    REQUEST_ID,
)

from . import openapi, refusals
from .access import Access
from .body_budget import BodyBudget, WithShare
from .connections import STATE, Connections
from .forwarding import Forwarder
from .jobs import Jobs
from .keyring import KeyPaths, Keyring, client_of
from .known_pictures import KnownPictures
from .listening import OpenSockets
from .metrics import Metrics
from .origins import Origins
from .paths import HeadAsGet, Paths
from .queues import LaneQueues
from .readiness import Readiness
from .registration import Registration
from .request_log import RequestLog
from .retries import Retries
from .routes.health import HealthRoutes
from .routes.images import ImagesRoutes
from .routes.page import PageRoutes
from .routes.segment import SegmentRoutes
from .routes.status import StatusRoutes
from .routes.weights import CANCEL_PATH, WeightsRoutes
from .security_headers import SecurityHeaders
from .settings import Settings
from .shares import REQUESTS_A_MINUTE, REQUESTS_AT_ONCE, Counters, Shares
from .torchserve import TorchServe
from .weights import Weights


def create_app(settings: Settings, sockets: OpenSockets | None = None) -> ASGIApp:
    """Return the gateway as an ASGI application.

    Args:
        sockets: the connections that its listening sockets have accepted.
    """
    model_types = settings.models.split()
    has_tokens = settings.torchserve_tokens == "on"
    key_file = settings.key_file if has_tokens else None
    counters = _counters(settings)
    keyring = Keyring(settings, counters)
    shares = _shares(settings, keyring, counters)
    torchserve = TorchServe(settings.inference_url, settings.management_url, key_file, model_types)
    metrics = Metrics()
    weights = Weights(torchserve, settings.stand_in, model_types)
    # TorchServe without tokens means that there are several, behind a balancer.
    queues = LaneQueues(settings.queue_size, throttled=has_tokens, list_lanes=torchserve.lanes)
    readiness = Readiness(torchserve, settings, weights.joining, queues.silent_s)
    registration = Registration(torchserve, weights, readiness, settings)
    jobs = Jobs(settings.jobs_directory)
    known_pictures = KnownPictures(lambda outcome: metrics.pictures.labels(outcome).inc())
    retries = Retries(
        torchserve, watch=has_tokens, on_retry=metrics.retries.inc, on_look=queues.resize
    )
    forwarder = Forwarder(torchserve, retries, queues, weights, known_pictures, jobs, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        connections = Connections(
            settings.max_connections,
            settings.max_connections_per_address,
            record_refusal=request_log.record_refusal,
            record_end=lambda reason: metrics.closed.labels(reason).inc(),
            sockets=sockets,
        )
        if sockets is not None:
            sockets.record_end = connections.record_end
        metrics.connections.set_function(lambda: len(connections))
        registration.remove_leftovers()
        async with torchserve:
            yield {STATE: connections}
            await readiness.close()
            await queues.close()
            await retries.close()
            await counters.close()

    app = _without_routes(lifespan)
    SegmentRoutes(forwarder).add_to(app)
    ImagesRoutes(forwarder).add_to(app)
    StatusRoutes(registration, jobs, keyring).add_to(app)
    WeightsRoutes(weights, registration, keyring).add_to(app)
    HealthRoutes(readiness, metrics, keyring, queues).add_to(app)
    PageRoutes().add_to(app)
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    budget = BodyBudget(settings.body_budget())
    metrics.bodies_bytes.set_function(lambda: budget.held)
    inner: ASGIApp = WithShare(app, budget, _owner_of_body(keyring))
    inner = Access(inner, keyring, shares, queues, Origins(settings, keyring.mode), settings)
    request_log = RequestLog(_for_browsers(inner, settings), metrics, paths)
    return KeyPaths(Paths(request_log, paths))


def _counters(settings: Settings) -> Counters:
    redis_url = settings.limits_redis_url
    return Counters(None if redis_url is None else redis_url.get_secret_value())


def _without_routes(lifespan: Callable[[FastAPI], AbstractAsyncContextManager[Any]]) -> FastAPI:
    """Return an application whose errors and pages are ready, and whose routes are missing."""
    app = FastAPIOffline(
        redoc_url=None,
        title="samserve",
        version=__version__,
        description=openapi.DESCRIPTION,
        lifespan=lifespan,
        redirect_slashes=False,  # `Paths` accepts every spelling
    )
    app.openapi = lambda: openapi.openapi(app)  # type: ignore[method-assign]
    refusals.add_to(app)
    return app


def _for_browsers(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Return an application whose answers tell a browser what it may do with them."""
    app = HeadAsGet(app, but=[CANCEL_PATH])
    if settings.cors_origins:
        app = _for_pages_of(settings.cors_origins.split(), app)
    return SecurityHeaders(app, tls=settings.tls_certificate is not None)


def _for_pages_of(origins: list[str], app: ASGIApp) -> ASGIApp:
    """Return an application that lets browsers use `app` from the pages of these origins."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST", "PUT"],
        allow_headers=["Authorization", "X-API-Key", "Content-Type", PREFER, REQUEST_ID],
        expose_headers=[
            REQUEST_ID,
            IMAGE_PAGES,
            OBJECTS,
            QUALITY,
            PREFERENCE_APPLIED,
            "Server-Timing",
            "Retry-After",
        ],
    )


def _owner_of_body(keyring: Keyring) -> Callable[[Scope], str]:
    """Return the function that says to whom a request's body counts.

    On loopback without keys, all clients have one address, so each connection counts alone.
    """
    if keyring.mode == "loopback":
        return lambda scope: str(scope["client"])
    return lambda scope: client_of(scope).name


def _shares(settings: Settings, keyring: Keyring, counters: Counters) -> Shares:
    """Return the limits of a client. Without keys on loopback only those hold that are set."""
    alone = keyring.mode == "loopback"
    at_once, a_minute = (0, 0) if alone else (REQUESTS_AT_ONCE, REQUESTS_A_MINUTE)
    if settings.requests_at_once is not None:
        at_once = settings.requests_at_once
    if settings.requests_a_minute is not None:
        a_minute = settings.requests_a_minute
    return Shares(counters, at_once, a_minute)
