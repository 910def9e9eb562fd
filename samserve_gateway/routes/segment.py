"""`/sam/` and `/sam/automask/`: segmentation."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response

from samserve_gateway import openapi
from samserve_gateway.forwarding import Forwarder


class SegmentRoutes:
    """Segmentation by prompts and by automask."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the application."""
        app.post("/sam/", **openapi.PROMPT)(self.prompt)
        app.post("/sam/automask/", **openapi.AUTOMASK)(self.automask)

    async def prompt(self, request: Request) -> Response:
        """Segment the objects of the prompts."""
        return await self._forwarder.prompt(request)

    async def automask(self, request: Request, stream: bool = False) -> Response:
        """Segment every object of the picture."""
        if stream:
            return await self._forwarder.stream_automask(request)
        return await self._forwarder.automask(request)
