"""`/healthz`, `/readyz` and `/metrics`: what an orchestrator and Prometheus ask."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from samserve_gateway import openapi
from samserve_gateway.keyring import Keyring, client_of
from samserve_gateway.metrics import CONTENT_TYPE_LATEST, Metrics
from samserve_gateway.queues import LaneQueues
from samserve_gateway.readiness import Readiness


class HealthRoutes:
    """Liveness, readiness and metrics."""

    def __init__(
        self, readiness: Readiness, metrics: Metrics, keyring: Keyring, queues: LaneQueues
    ) -> None:
        self._readiness = readiness
        self._metrics = metrics
        self._keyring = keyring
        self._queues = queues

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the application."""
        app.get("/healthz", **openapi.HEALTHZ)(self.healthz)
        app.get("/readyz", **openapi.READYZ)(self.readyz)
        app.get("/metrics", include_in_schema=False)(self.metrics)

    async def healthz(self) -> dict[str, str]:
        return {"status": "alive"}

    async def readyz(self, request: Request) -> JSONResponse:
        """Return 200 if all lanes are ready, else 503. A client with a key sees each lane.

        With `?lanes=any`, one ready lane is enough: an orchestrator then starts a gateway although
        another lane is down.
        """
        ready, lanes = await self._readiness.check()
        if request.query_params.get("lanes") == "any":
            ready = any(lane["state"] == "ready" for lane in lanes.values())
        knows = self._keyring.mode != "keys" or client_of(request.scope).has_key
        content = {"ready": ready, **({"lanes": lanes} if knows else {})}
        return JSONResponse(content, 200 if ready else 503)

    async def metrics(self) -> Response:
        """Return the page that Prometheus reads."""
        _, lanes = await self._readiness.check()
        return Response(self._metrics.page(lanes, self._queues), media_type=CONTENT_TYPE_LATEST)
