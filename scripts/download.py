"""A file from a web address: in pieces if need be, of a bounded size, from where it may come from.

Does not know what the file should be: who calls checks that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path

import httpx2

# Connecting is tried at each of a host's addresses in turn, so a closed network costs a
# few times this; an open one may well pause longer between two pieces.
TIMEOUT = httpx2.Timeout(30, connect=5)
MAX_REDIRECTS = 10

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
    check: Callable[[httpx2.URL], None] = lambda url: None,
    etag: Path | None = None,
) -> None:
    """Put the file at `part`, going on from what an earlier call left there.

    Args:
        check: asked of the address, and of every one that it redirects to; raises where
            nothing may come from there.
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
        with httpx2.Client(timeout=TIMEOUT) as client, _opened(client, url, headers, check) as file:
            if file.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()  # longer than the file there, so no beginning of it
            file.raise_for_status()
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
    except httpx2.HTTPStatusError as error:
        raise Unreachable(f"HTTP {error.response.status_code}") from error
    except (httpx2.RequestError, httpx2.InvalidURL) as error:
        raise Unreachable(f"{type(error).__name__}: {error}") from error


@contextlib.contextmanager
def _opened(
    client: httpx2.Client, url: str, headers: dict[str, str], check: Callable[[httpx2.URL], None]
) -> Iterator[httpx2.Response]:
    """The answer at the end of all redirects, its content still to be read."""
    request: httpx2.Request | None = client.build_request("GET", url, headers=headers)
    for _ in range(1 + MAX_REDIRECTS):
        if request is None:
            break
        check(request.url)
        response = client.send(request, stream=True)
        request = response.next_request
        with contextlib.closing(response):
            if request is None:
                yield response
                return
    raise Unreachable(f"more than {MAX_REDIRECTS} redirects")


def _keep_version(file: httpx2.Response, etag: Path) -> None:
    strong = file.headers.get("ETag", "W/")
    version = file.headers.get("Last-Modified") if strong.startswith("W/") else strong
    etag.unlink(missing_ok=True)
    if version is not None:
        etag.write_text(version)


def _write(
    file: httpx2.Response, part: Path, n_have: int, max_bytes: int, progress: Progress
) -> None:
    length = file.headers.get("Content-Length", "")
    total = n_have + int(length) if length.isdecimal() else None
    if total is not None and total > max_bytes:
        raise TooLong(f"{total} bytes")
    with part.open("ab" if n_have else "wb") as kept:
        progress(n_have, total)
        for chunk in file.iter_raw():
            n_have += kept.write(chunk)
            if n_have > max_bytes:  # perhaps without end
                raise TooLong(f"more than {max_bytes} bytes")
            progress(n_have, total)
