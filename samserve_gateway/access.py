"""Lets a request in if its client may use the gateway and has not had more than its share.

It stands in front of the routes, and looks at the head of a request only: a refused body is never
read by the application.
"""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from fastapi import Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from samserve.errors import Busy, SamserveError
from samserve.serving.lanes import Mode

from .access_modes import FOR_EVERYBODY
from .keyring import Keyring, put_key_back
from .origins import Origins
from .pace import SLOW
from .queues import LaneQueues
from .refusals import refusal
from .routes.page import key_page, wants_key_page
from .settings import Settings
from .shares import Shares

HOLD_S = 0.02
"""How long the refusal of a full queue is held back. A client that asks again at once would
otherwise take the processor from the workers."""

SEGMENTATION: dict[str, Mode] = {
    "/sam/": "prompt",
    "/sam/automask/": "automask",
    "/sam/images/": "prompt",
}
"""Requests that take a worker's time. A client has a limited number of them under way."""


class Access:
    """An ASGI application that wraps another one, and refuses what its clients may not do.

    Args:
        settings: a refused body up to `max_body_bytes` is received and thrown away, because most
            clients read the answer only after they have sent their body. The connection of a longer
            one is closed.
    """

    def __init__(
        self,
        app: ASGIApp,
        keyring: Keyring,
        shares: Shares,
        queues: LaneQueues,
        origins: Origins,
        settings: Settings,
    ) -> None:
        self._app = app
        self._origins = origins
        self._keyring = keyring
        self._shares = shares
        self._queues = queues
        self._max_body_bytes = settings.max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        with ExitStack() as stack:
            try:
                await self._admit(scope, stack)
            except SamserveError as error:
                if isinstance(error, Busy):
                    await asyncio.sleep(HOLD_S)
                await refuse_early(error, scope, receive, send, self._max_body_bytes)
                return
            await self._app(put_key_back(scope), receive, send)

    async def _admit(self, scope: Scope, stack: ExitStack) -> None:
        who = self._keyring.identify(scope)
        if scope["path"] in FOR_EVERYBODY and scope["method"] in ("GET", "HEAD"):
            return
        self._origins.check(scope["method"], Headers(scope=scope))
        await self._keyring.require_key(scope, who)
        await self._shares.count(who.name)
        mode = SEGMENTATION.get(scope["path"])
        if mode is not None and scope["method"] in ("POST", "PUT"):
            self._queues.refuse_if_all_full(mode)
            stack.enter_context(self._shares.under_way(who.name))


async def refuse_early(
    error: SamserveError, scope: Scope, receive: Receive, send: Send, max_body_bytes: int
) -> None:
    """Answer a request whose body the application has not read.

    After the answer, the HTTP server throws away what still comes of a body whose length is known.
    It would do so without end for a body of unknown length, so such a body is received first.
    """
    headers = Request(scope).headers
    response = key_page(error) if wants_key_page(error, scope, headers) else refusal(error)
    length = headers.get("content-length", "")
    if "transfer-encoding" in headers:
        received = 0
        more = True
        while more and received <= max_body_bytes and SLOW not in scope.get("state", {}):
            message = await receive()
            received += len(message.get("body", b""))
            more = message.get("more_body", False)
        if more:
            response.headers["Connection"] = "close"
    elif length.isdigit() and int(length) > max_body_bytes:
        response.headers["Connection"] = "close"
    await response(scope, receive, send)
