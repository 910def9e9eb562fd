"""`/` and `/page/…`: the page on which a person draws a box and sees the mask.

The files are built from `page/` at the top of the repository (`make page`). All their addresses are
relative, so the page works below `/key/<key>/` as well.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import RedirectResponse
from starlette.datastructures import Headers
from starlette.types import Scope

from samserve.errors import SamserveError, Unauthorized
from samserve_gateway.keyring import NO_SLASH

FOLDER = Path(__file__).parents[1] / "page"

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""The Content-Security-Policy of the page: nothing from elsewhere, no script or style in it."""

KEY_PAGE = "key.html"
"""Asks a person for a key. It is sent only as the refusal of a request without a right one."""

_COMPRESSED = (".html", ".js", ".css", ".svg", ".txt")


@dataclass(frozen=True)
class File:
    """A file of the page, as it is sent."""

    content: bytes
    compressed: bytes | None
    media_type: str
    tag: str

    @classmethod
    def read(cls, path: Path) -> File:
        """Return the file with its digest as its tag, compressed if it is text."""
        content = path.read_bytes()
        compressed = gzip.compress(content, mtime=0) if path.suffix in _COMPRESSED else None
        media_type = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
        if path.suffix == ".js":
            media_type = "text/javascript"  # the system's table of types may say another one
        return cls(content, compressed, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def answer(self, headers: Headers) -> Response:
        """Return the answer to a request with these headers."""
        own = {
            "ETag": self.tag,
            "Cache-Control": "private, no-cache",  # keep it, and ask whether it is still the same
            "Vary": "Accept-Encoding",
        }
        if self.media_type == "text/html":
            own["Content-Security-Policy"] = POLICY
        if self.tag in headers.get("if-none-match", ""):
            return Response(status_code=304, headers=own)
        content = self.content
        if self.compressed is not None and "gzip" in headers.get("accept-encoding", ""):
            content = self.compressed
            own["Content-Encoding"] = "gzip"
        return Response(content, headers=own, media_type=self.media_type)


class PageRoutes:
    """The page and its files, which are read once."""

    def __init__(self, folder: Path = FOLDER) -> None:
        files = (path for path in folder.rglob("*") if path.is_file())
        paths = sorted(path for path in files if path.name != KEY_PAGE)
        self._files = {path.relative_to(folder).as_posix(): File.read(path) for path in paths}

    def add_to(self, app: FastAPI) -> None:
        """Add a route for each file. `index.html` is `/`."""
        for name, file in self._files.items():
            path = "/" if name == "index.html" else f"/page/{name}"
            app.get(path, include_in_schema=False)(_sender(file))


def _sender(file: File) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        if request.scope.get(NO_SLASH):
            return RedirectResponse(request.scope["root_path"] + "/")
        return file.answer(request.headers)

    return send


def wants_key_page(error: SamserveError, scope: Scope, headers: Headers) -> bool:
    """Return whether the refused request is a browser's, for the page, without a right key."""
    is_browser = "text/html" in headers.get("accept", "")
    return isinstance(error, Unauthorized) and scope["path"] == "/" and is_browser


def key_page(error: SamserveError) -> Response:
    """Return the refusal as a page with a field for the key."""
    headers = {"Cache-Control": "no-store", "WWW-Authenticate": "Bearer"}
    return Response(_key_page(), error.status, headers, "text/html")


@cache
def _key_page() -> bytes:
    return (FOLDER / KEY_PAGE).read_bytes()
