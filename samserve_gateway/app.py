"""Makes the gateway: its parts, its routes, and what surrounds them.

A request passes, from the outside in:

- `paths.py`: one spelling for each path;
- `request_log.py`: the request's id, log line and metrics;
- `security_headers.py`: what a browser must not do with the answer;
- `body_budget.py`: the request's share of the memory for bodies;
- `refusals.py`: every error becomes an answer in the one shape;
- `routes/`: samapi's API, health and metrics, the `/docs` page;
- `forwarding.py`: from the body to a lane of TorchServe, and its answer back to the client.

The gateway segments nothing and keeps no picture; the workers do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.middleware.cors import CORSMiddleware
from starlette.routing import Route
from starlette.types import ASGIApp

from samserve import __version__
from samserve.serving.headers import IMAGE_PAGES, REQUEST_ID

from . import openapi, refusals
from .body_budget import BodyBudget, WithShare
from .connections import STATE, Connections
from .forwarding import Forwarder
from .jobs import Jobs
from .known_pictures import KnownPictures
from .metrics import Metrics
from .paths import HeadAsGet, Paths
from .readiness import Readiness
from .registration import Registration
from .request_log import RequestLog
from .retries import Retries
from .routes.health import HealthRoutes
from .routes.segment import SegmentRoutes
from .routes.status import StatusRoutes
from .routes.weights import CANCEL_PATH, WeightsRoutes
from .security_headers import SecurityHeaders
from .settings import Settings
from .torchserve import TorchServe
from .weights import Weights


def create_app(settings: Settings) -> ASGIApp:
    """Return the gateway as an ASGI application."""
    model_types = settings.models.split()
    has_tokens = settings.torchserve_tokens == "on"
    key_file = settings.key_file if has_tokens else None
    torchserve = TorchServe(settings.inference_url, settings.management_url, key_file, model_types)
    metrics = Metrics()
    weights = Weights(torchserve, settings.stand_in, model_types)
    readiness = Readiness(torchserve, settings, weights.joining)
    registration = Registration(torchserve, weights, readiness, settings)
    jobs = Jobs(settings.jobs_directory)
    known_pictures = KnownPictures(lambda outcome: metrics.pictures.labels(outcome).inc())
    # TorchServe without tokens means that there are several, behind a balancer.
    retries = Retries(torchserve, watch=has_tokens, on_retry=metrics.retries.inc)
    forwarder = Forwarder(torchserve, retries, weights, known_pictures, jobs, settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
        connections = Connections(
            settings.max_connections,
            settings.max_connections_per_address,
            record_refusal=request_log.record_refusal,
            record_end=lambda reason: metrics.closed.labels(reason).inc(),
        )
        metrics.connections.set_function(lambda: len(connections))
        async with torchserve:
            yield {STATE: connections}
            await readiness.close()
            await retries.close()

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
    SegmentRoutes(forwarder).add_to(app)
    StatusRoutes(registration, jobs).add_to(app)
    WeightsRoutes(weights, registration).add_to(app)
    HealthRoutes(readiness, metrics).add_to(app)
    paths = {route.path for route in app.routes if isinstance(route, Route)}
    inner: ASGIApp = HeadAsGet(app, but=[CANCEL_PATH])
    budget = BodyBudget(settings.body_budget())
    metrics.bodies_bytes.set_function(lambda: budget.held)
    inner = WithShare(inner, budget)
    if settings.cors_origins:
        inner = _for_pages_of(settings.cors_origins.split(), inner)
    inner = SecurityHeaders(inner, tls=settings.tls_certificate is not None)
    request_log = RequestLog(inner, metrics, paths)
    return Paths(request_log, paths)


def _for_pages_of(origins: list[str], app: ASGIApp) -> ASGIApp:
    """Return an application that lets browsers use `app` from the pages of these origins."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=["GET", "HEAD", "POST"],
        allow_headers=["Authorization", "X-API-Key", "Content-Type", REQUEST_ID],
        expose_headers=[REQUEST_ID, IMAGE_PAGES, "Server-Timing", "Retry-After"],
    )
