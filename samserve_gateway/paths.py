"""Maps every spelling of a path to its route: without the last slash, or with doubled slashes.

samapi's addresses end in a slash, and clients join them to a base URL that may end in one, too. A
redirect instead would lose bodies, and would name the wrong scheme behind a proxy that ends TLS.

An encoded slash (`%2F`) and `..` are not resolved, so paths with them are unknown (404).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

_AUTHORITY = re.compile(rb"(?i)https?://[^/?#]*")
_SLASHES = re.compile("/+")


class Paths:
    """An ASGI application that wraps another one, and gives it each path as the route spells it.

    Args:
        routes: the paths of the application's routes.
    """

    def __init__(self, app: ASGIApp, routes: Iterable[str]) -> None:
        self._app = app
        self._routes = {_key(route): route for route in routes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on with its path rewritten."""
        if scope["type"] == "http":
            path = _decoded(scope["raw_path"])
            scope = {**scope, "path": self._routes.get(_key(path), path)}
        await self._app(scope, receive, send)


class HeadAsGet:
    """An ASGI application that wraps another one, and gives it each HEAD request as a GET request.

    The protocol leaves out the body of the answer.

    Args:
        but: paths that do something when they are got.
    """

    def __init__(self, app: ASGIApp, but: Iterable[str]) -> None:
        self._app = app
        self._but = frozenset(but)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] == "http" and scope["method"] == "HEAD" and scope["path"] not in self._but:
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)


def _decoded(raw_path: bytes) -> str:
    """Return the path percent-decoded, except that encoded slashes stay encoded.

    A client that uses the gateway as a proxy sends a whole URL. Its path is returned.
    """
    path = _AUTHORITY.sub(b"", raw_path, count=1) if raw_path[:1] != b"/" else raw_path
    return unquote(re.sub("(?i)%2f", "%252F", path.decode("latin-1")))


def _key(path: str) -> str:
    """Return a key that is the same for all spellings of a path."""
    return _SLASHES.sub("/", path).rstrip("/")
