"""Every spelling of a path leads to its route: with or without the last slash, with doubled ones.

samapi's addresses end in a slash, and clients put them together from a base that may end in one,
too. A redirect would lose bodies, and name the wrong scheme behind a proxy that ends TLS.

An encoded slash (`%2F`) is part of a name and `..` is a name like any other: neither is resolved,
so both lead nowhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_AUTHORITY = re.compile(rb"(?i)https?://[^/?#]*")
_SLASHES = re.compile("/+")


class Paths:
    """An ASGI application that gives another one each path as the route spells it.

    Args:
        routes: the paths of the routes, as they are spelt there.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[str]) -> None:
        self._app = app
        self._routes = {_key(route): route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = _decoded(scope["raw_path"])
            scope = {**scope, "path": self._routes.get(_key(path), path)}
        await self._app(scope, receive, send)


def _decoded(raw_path: bytes) -> str:
    """Return the path in characters. Encoded slashes stay encoded.

    A client that takes us for a proxy sends the whole address, of which this is the path.
    """
    path = _AUTHORITY.sub(b"", raw_path, count=1) if raw_path[:1] != b"/" else raw_path
    return unquote(re.sub("(?i)%2f", "%252F", path.decode("latin-1")))


def _key(path: str) -> str:
    """Return the part that all spellings of a path have in common."""
    return _SLASHES.sub("/", path).rstrip("/")
