"""`/sam/progress/` and `/sam/version/`: samapi's questions about the server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from samserve import __version__
from samserve_gateway import openapi
from samserve_gateway.jobs import Jobs
from samserve_gateway.keyring import Keyring, client_of
from samserve_gateway.registration import Registration


class StatusRoutes:
    """The progress of the work under way, and the server's version."""

    def __init__(self, registration: Registration, jobs: Jobs, keyring: Keyring) -> None:
        self._registration = registration
        self._jobs = jobs
        self._keyring = keyring

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the application."""
        app.get("/sam/progress/", **openapi.PROGRESS)(self.progress)
        app.get("/sam/version/", response_class=PlainTextResponse, **openapi.VERSION)(self.version)

    async def progress(self, request: Request) -> dict[str, Any]:
        """Return the progress of the registration under way, or else of the oldest automask.

        On a network, the registration is an administrator's, and a client sees its own automasks.
        """
        who = client_of(request.scope)
        alone = self._keyring.mode == "loopback"
        registration = self._registration.progress() if alone or who.admin else None
        return registration or self._jobs.progress(None if alone else who.name)

    async def version(self) -> str:
        return __version__
