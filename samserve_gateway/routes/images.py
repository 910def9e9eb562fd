"""`/sam/images/`: pictures that are sent before anybody asks about them."""

from __future__ import annotations

from typing import Annotated

from fastapi import FastAPI, Query, Request, Response

from samserve_gateway import openapi_images
from samserve_gateway.forwarding import Forwarder


class ImagesRoutes:
    """The upload of a picture."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the application."""
        app.put("/sam/images/", **openapi_images.UPLOAD)(self.upload)

    async def upload(
        self,
        request: Request,
        type: str | None = None,
        page: Annotated[int | None, Query(ge=0, le=2**31 - 1)] = None,
        checkpoint_url: str | None = None,
    ) -> Response:
        """Embed a picture, so that requests with its digest are answered at once."""
        chosen = {"type": type, "page": page, "checkpoint_url": checkpoint_url}
        return await self._forwarder.embed(request, chosen)
