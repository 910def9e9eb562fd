"""This module downloads a file with a bounded size, from allowed addresses, and resumes downloads.

The caller checks that the content is the expected one.
"""

from __future__ import annotations

import contextlib
import logging
import math
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import requests
from requests.utils import requote_uri
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url

# Seconds to connect, and between two pieces. requests tries each address of a host in turn, so
# without a network it takes a multiple of the first.
TIMEOUT_S = (5, 30)
MAX_REDIRECTS = 10
_CHUNK_BYTES = 1 << 16

logger = logging.getLogger(__name__)

Progress = Callable[[int, "int | None"], None]
"""Called with the number of bytes downloaded, and the total, or None if the server does not say."""


class DownloadFailed(Exception):
    """The address did not send the whole file. The bytes so far are kept, to be resumed."""


class TooLong(Exception):
    """The file has more bytes than the limit. None of it is kept."""


@dataclass(frozen=True)
class Pace:
    """How slow a download may be.

    Attributes:
        total_s: seconds for the whole file.
        min_rate: bytes a second that must arrive at least, on average over `over_s` seconds.
    """

    total_s: float = math.inf
    min_rate: float = 0.0
    over_s: float = 60.0


def download(
    url: str,
    part: Path,
    *,
    max_bytes: int,
    progress: Progress,
    check: Callable[[str], None] = lambda url: None,
    etag: Path | None = None,
    pace: Pace | None = None,
) -> None:
    """Download a file to `part`, and resume the bytes that an earlier call left there.

    Args:
        url: the address.
        part: the path of the file.
        max_bytes: the largest number of bytes that is accepted.
        progress: is called after each piece.
        check: is called with the address, and with every address that it redirects to, before
            anything is sent there. It raises an exception if the address is not allowed.
        etag: the path of a file with the server's name for this version of the file, so that
            pieces of two versions are never joined. Without it, the caller must detect that.
        pace: how slow the file may come. None: as slow as it likes.

    Raises:
        DownloadFailed: the address did not answer, the connection broke, or it was too slow.
        TooLong: the file has more than `max_bytes`.
    """
    n_have = part.stat().st_size if part.exists() else 0
    headers = {
        "Accept-Encoding": "identity"
    }  # ranges and sizes count the file's bytes, not compressed ones
    if etag is not None:
        n_have = n_have if etag.exists() else 0
        headers |= {"If-Range": etag.read_text()} if n_have else {}
    if n_have:
        headers["Range"] = f"bytes={n_have}-"
    try:
        with requests.Session() as session, _opened(session, url, headers, check) as file:
            if file.status_code == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                part.unlink()  # longer than the server's file, so not a beginning of it
            if not HTTPStatus.OK <= file.status_code < HTTPStatus.MULTIPLE_CHOICES:
                raise DownloadFailed(f"HTTP {file.status_code}")
            if file.status_code != HTTPStatus.PARTIAL_CONTENT:
                n_have = 0  # the server supports no ranges, or has another version: start again
            elif not file.headers.get("Content-Range", "").startswith(f"bytes {n_have}-"):
                raise DownloadFailed("the server sent another range than the requested one")
            if etag is not None and n_have == 0:
                _keep_version(file, etag)
            _write(file, part, n_have, max_bytes, progress, pace or Pace())
    except TooLong:
        part.unlink(missing_ok=True)
        raise
    except (requests.RequestException, HTTPError) as error:
        logger.warning("%s: the download broke off: %r", url[:200], error)
        raise DownloadFailed(_reason(error)) from error


def _reason(error: BaseException) -> str:
    """Return in words why a download broke off. The log has the error itself."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner  # requests wraps the first error three times
    if isinstance(error, TimeoutError):
        return "the host did not answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the host's certificate is not valid: {error.verify_message}"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror  # as "Connection refused"
    return "the connection broke"


@contextlib.contextmanager
def _opened(
    session: requests.Session, url: str, headers: dict[str, str], check: Callable[[str], None]
) -> Iterator[requests.Response]:
    """Follow all redirects, and yield the last response, whose content has not been read.

    Each address is checked before anything is sent to it. `Session.send` cannot be used, because it
    reads the content of a redirect, whatever its size.
    """
    session.auth = _no_credentials
    for _ in range(1 + MAX_REDIRECTS):
        check(url)
        request = session.prepare_request(requests.Request("GET", url, headers=headers))
        address = str(request.url)
        if parse_url(address).netloc != parse_url(url).netloc:
            raise DownloadFailed(f"{url[:200]} and {address[:200]} are not the same address")
        # The proxies and the CA bundle from the environment.
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
    raise DownloadFailed(f"more than {MAX_REDIRECTS} redirects")


def _redirected_to(session: requests.Session, response: requests.Response) -> str | None:
    try:
        target = session.get_redirect_target(response)
        return None if target is None else requote_uri(urljoin(response.url, target))
    except ValueError as exc:
        raise DownloadFailed(f"it redirects to an invalid address: {exc}") from exc


def _no_credentials(request: requests.PreparedRequest) -> requests.PreparedRequest:
    """Send no user and password. Otherwise requests would read them from ~/.netrc."""
    return request


def _keep_version(file: requests.Response, etag: Path) -> None:
    strong = file.headers.get("ETag", "W/")
    version = file.headers.get("Last-Modified") if strong.startswith("W/") else strong
    etag.unlink(missing_ok=True)
    # A name with a line break could not be sent in a header.
    if version is not None and version.isascii() and version.isprintable():
        etag.write_text(version)


def _write(
    file: requests.Response,
    part: Path,
    n_have: int,
    max_bytes: int,
    progress: Progress,
    pace: Pace,
) -> None:
    clock = _Clock(pace, n_have)
    length = file.headers.get("Content-Length", "")
    total = n_have + int(length) if length.isdecimal() and len(length) < 20 else None
    if total is not None and total > max_bytes:
        raise TooLong(f"{total} bytes")
    with part.open("ab" if n_have else "wb") as output:
        progress(n_have, total)
        # read1 returns the bytes that have arrived. read would lose them if the connection breaks.
        while chunk := file.raw.read1(_CHUNK_BYTES, decode_content=False):
            n_have += output.write(chunk)
            if n_have > max_bytes:  # the server may send without end
                raise TooLong(f"more than {max_bytes} bytes")
            clock.check(n_have)
            progress(n_have, total)


class _Clock:
    """Checks the pace of a download, whose clock cannot be set back."""

    def __init__(self, pace: Pace, n_have: int) -> None:
        self._pace = pace
        self._begun = self._counted_from = time.monotonic()
        self._n_counted = n_have

    def check(self, n_have: int) -> None:
        """Raise DownloadFailed if the bytes have come too slowly."""
        pace, now = self._pace, time.monotonic()
        if now - self._begun > pace.total_s:
            raise DownloadFailed(f"it took longer than {pace.total_s:g} s")
        seconds = now - self._counted_from
        if seconds < pace.over_s:
            return
        rate = (n_have - self._n_counted) / seconds
        if rate < pace.min_rate:
            raise DownloadFailed(
                f"it sent {rate:.0f} bytes a second for {seconds:.0f} s; "
                f"the least is {pace.min_rate:.0f}"
            )
        self._counted_from, self._n_counted = now, n_have
