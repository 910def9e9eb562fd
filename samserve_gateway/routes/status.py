"""`/sam/progress/` and `/sam/version/`: samapi's questions about the server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.responses import PlainTextResponse

from samserve import __version__
from samserve_gateway import openapi
from samserve_gateway.jobs import Jobs
from samserve_gateway.registration import Registration


class StatusRoutes:
    """The progress of the work under way, and the server's version."""

    def __init__(self, registration: Registration, jobs: Jobs) -> None:
        self._registration = registration
        self._jobs = jobs

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the application."""
        app.get("/sam/progress/", **openapi.PROGRESS)(self.progress)
        app.get("/sam/version/", response_class=PlainTextResponse, **openapi.VERSION)(self.version)

    async def progress(self) -> dict[str, Any]:
        """Return the progress of the registration under way, or else of the oldest automask."""
        return self._registration.progress() or self._jobs.progress()

    async def version(self) -> str:
        return __version__
