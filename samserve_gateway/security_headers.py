"""Adds the headers that tell a browser to be strict with an answer.

A page may run only the scripts that came with it: files of this server, and scripts in the page
itself, of which the header has the digests.
"""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

STRICT_TRANSPORT = "max-age=31536000"
"""A browser that has seen this header uses only HTTPS for a year (RFC 6797)."""

_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class SecurityHeaders:
    """An ASGI application that wraps another one, and adds these headers to its answers.

    Args:
        tls: whether the server speaks TLS.
    """

    def __init__(self, app: ASGIApp, *, tls: bool) -> None:
        self._app = app
        self._tls = tls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, and its answer with the headers."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        page: Message | None = None  # the start of a page, which waits for the page's text

        async def send_with_headers(message: Message) -> None:
            nonlocal page
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["X-Content-Type-Options"] = "nosniff"
                if self._tls:
                    headers["Strict-Transport-Security"] = STRICT_TRANSPORT
                if headers.get("Content-Type", "").startswith("text/html"):
                    page = message
                    return
            elif page is not None:
                headers = MutableHeaders(scope=page)
                # The page at `/` brings a stricter policy of its own.
                headers.setdefault("Content-Security-Policy", policy(message.get("body", b"")))
                headers["X-Frame-Options"] = "DENY"
                headers["Referrer-Policy"] = "no-referrer"
                start, page = page, None
                await send(start)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def policy(page: bytes) -> str:
    """Return the Content-Security-Policy of a page."""
    digests = [hashlib.sha256(script).digest() for script in _SCRIPT.findall(page)]
    scripts = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'self'{scripts}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    )
