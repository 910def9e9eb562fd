"""`/sam/weights/`: the weights that requests can choose, and the registration of more."""

from __future__ import annotations

from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from samserve.serving.json_text import to_utf8
from samserve_gateway import openapi
from samserve_gateway.bodies import read_content
from samserve_gateway.jobs import while_client_waits
from samserve_gateway.keyring import Keyring
from samserve_gateway.multipart import charset_of
from samserve_gateway.registration import RegisterRequest, Registration
from samserve_gateway.weights import Weights

CANCEL_PATH = "/sam/weights/cancel/"
"""samapi's address, which does something though it is got."""

MAX_REGISTRATION_BYTES = 2**16


class WeightsRoutes:
    """The list of weights, and their registration by an administrator."""

    def __init__(self, weights: Weights, registration: Registration, keyring: Keyring) -> None:
        self._weights = weights
        self._registration = registration
        self._keyring = keyring

    def add_to(self, app: FastAPI) -> None:
        """Add the routes to the application. The names are part of the OpenAPI operation ids."""
        path, text = "/sam/weights/", PlainTextResponse
        app.get(path, name="registered", **openapi.WEIGHTS)(self.list_weights)
        app.post(path, response_class=text, **openapi.REGISTER)(self.register)
        app.get(CANCEL_PATH, response_class=text, **openapi.CANCEL)(self.cancel)

    async def list_weights(self, type: str | None = None) -> list[dict[str, str]]:
        """Return the weights of one model type, or of all types that are loaded."""
        if type is None:
            return await self._weights.registered(await self._weights.loaded())
        return await self._weights.choices(type)

    async def register(self, request: Request) -> str:
        """Register weights. If the client goes, the registration is cancelled."""
        await self._keyring.require_admin(request.scope)
        content = await read_content(request, MAX_REGISTRATION_BYTES)
        charset = charset_of(request.headers.get("content-type", ""))
        weights = RegisterRequest.parse(to_utf8(content, charset))
        if weights.type not in await self._weights.loaded():
            raise await self._weights.not_loaded(weights.type)
        return await while_client_waits(request, self._registration.register(weights))

    async def cancel(self, request: Request) -> str:
        """Cancel the registration under way."""
        await self._keyring.require_admin(request.scope)
        self._registration.cancel()
        return "Cancel signal sent"
