"""Makes the gateway: its parts, its routes, and what surrounds them.

A request passes, from the outside in:

- `paths.py`: one spelling for each path;
- `request_log.py`: the request's id, log line and metrics;
- `refusals.py`: every error becomes an answer in the one shape;
- `routes/`: samapi's API, health and metrics, the `/docs` page;
- `forwarding.py`: from the body to a lane of TorchServe, and its answer back to the client.

The gateway segments nothing and keeps no picture; the workers do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from starlette.routing import Route
from starlette.types import ASGIApp

from samserve import __version__

from . import openapi, refusals
from .forwarding import Forwarder
from .jobs import Jobs
from .known_pictures import KnownPictures
from .metrics import Metrics
from .paths import Paths
from .readiness import Readiness
from .registration import Registration
from .request_log import RequestLog
from .retries import Retries
from .routes.health import HealthRoutes
from .routes.segment import SegmentRoutes
from .routes.status import StatusRoutes
from .routes.weights import WeightsRoutes
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
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        registration.remove_leftovers()
        async with torchserve:
            yield
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
    return Paths(RequestLog(app, metrics, paths), paths)
