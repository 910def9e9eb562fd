"""Download one file: resumed where possible, of a bounded size, from allowed addresses only.

This module does not know what the file should be. The caller checks that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from requests.utils import requote_uri
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

# Seconds to connect, and between two pieces. requests tries each address of a host in turn, so a
# closed network costs a few times the first.
TIMEOUT_S = (5, 30)
MAX_REDIRECTS = 10
_CHUNK_BYTES = 1 << 16

Progress = Callable[[int, "int | None"], None]
"""Told how many bytes are there, and how many there will be, if the server says."""


class Unreachable(Exception):
    """The address did not give the whole file; what it gave is kept, and can be gone on from."""


class TooLong(Exception):
    """The file has more bytes than are wanted; none of it is kept."""


def download(
    url: str,
    part: Path,
    *,
    max_bytes: int,
    progress: Progress,
    check: Callable[[str], None] = lambda url: None,
    etag: Path | None = None,
) -> None:
    """Put the file at `part`, going on from what an earlier call left there.

    Args:
        check: is called with the address, and with every address that it redirects to, before
            anything is sent there. It raises where nothing may come from there.
        etag: where the server's name for this version of the file is kept, so that pieces of
            two versions are never put together. Without it, who calls must find that out.

    Raises:
        Unreachable: the address did not answer, or broke off.
        TooLong: more than `max_bytes`.
    """
    n_have = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # ranges and sizes are of the file's own bytes
    if etag is not None:
        n_have = n_have if etag.exists() else 0
        headers |= {"If-Range": etag.read_text()} if n_have else {}
    if n_have:
        headers["Range"] = f"bytes={n_have}-"
    try:
        with requests.Session() as session, _opened(session, url, headers, check) as file:
            if file.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()  # longer than the file there, so no beginning of it
            if not HTTPStatus.OK <= file.status_code < HTTPStatus.MULTIPLE_CHOICES:
                raise Unreachable(f"HTTP {file.status_code}")
            if file.status_code != HTTPStatus.PARTIAL_CONTENT:
                n_have = 0  # the server knows no ranges, or has another version: anew
            elif not file.headers.get("Content-Range", "").startswith(f"bytes {n_have}-"):
                raise Unreachable("the server sent another range than the one asked for")
            if etag is not None and n_have == 0:
                _keep_version(file, etag)
            _write(file, part, n_have, max_bytes, progress)
    except TooLong:
        part.unlink(missing_ok=True)
        raise
    except (requests.RequestException, HTTPError) as error:
        raise Unreachable(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Return what went wrong first, which requests wraps three times: name, refused, reset …"""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return f"{type(error).__name__}: {error}"


@contextlib.contextmanager
def _opened(
    session: requests.Session, url: str, headers: dict[str, str], check: Callable[[str], None]
) -> Iterator[requests.Response]:
    """Follow all redirects, and give the last answer, whose content is still to be read.

    Each address is checked before anything is sent to it. `Session.send` would not do: it reads
    the content of a redirect, of whatever size.
    """
    session.auth = _no_credentials
    for _ in range(1 + MAX_REDIRECTS):
        check(url)
        request = session.prepare_request(requests.Request("GET", url, headers=headers))
        address = str(request.url)
        if parse_url(address).netloc != parse_url(url).netloc:
            raise Unreachable(f"{url[:200]} and {address[:200]} are not the same address")
        # The proxies and the CA bundle that the environment names.
        environment: dict[str, Any] = dict(
            session.merge_environment_settings(address, {}, True, None, None)
        )
        response = session.get_adapter(address).send(request, timeout=TIMEOUT_S, **environment)
        with contextlib.closing(response):
            target = _redirected_to(session, response)
            if target is None:
                yield response
                return
            url = target
    raise Unreachable(f"more than {MAX_REDIRECTS} redirects")


def _redirected_to(session: requests.Session, response: requests.Response) -> str | None:
    try:
        target = session.get_redirect_target(response)
        return None if target is None else requote_uri(urljoin(response.url, target))
    except ValueError as exc:
        raise Unreachable(f"it redirects to an address that cannot be read: {exc}") from exc


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no user and password. Without this, requests would take them from ~/.netrc."""
    return request


def _keep_version(file: requests.Response, etag: Path) -> None:
    strong = file.headers.get("ETag", "W/")
    version = file.headers.get("Last-Modified") if strong.startswith("W/") else strong
    etag.unlink(missing_ok=True)
    # A name with a line break could not be sent back.
    if version is not None and version.isascii() and version.isprintable():
        etag.write_text(version)


def _write(
    file: requests.Response, part: Path, n_have: int, max_bytes: int, progress: Progress
) -> None:
    length = file.headers.get("Content-Length", "")
    total = n_have + int(length) if length.isdecimal() and len(length) < 20 else None
    if total is not None and total > max_bytes:
        raise TooLong(f"{total} bytes")
    with part.open("ab" if n_have else "wb") as kept:
        progress(n_have, total)
        # What has arrived is written at once: read() would lose it when the connection breaks.
        while chunk := file.raw.read1(_CHUNK_BYTES, decode_content=False):
            n_have += kept.write(chunk)
            if n_have > max_bytes:  # perhaps without end
                raise TooLong(f"more than {max_bytes} bytes")
            progress(n_have, total)
