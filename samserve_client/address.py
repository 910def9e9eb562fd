"""An Address is where a server is, and the key that it wants."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field
from urllib.parse import unquote, urlsplit

URL_VARIABLE = "SAMSERVE_URL"
KEY_VARIABLE = "SAMSERVE_API_KEY"
DEFAULT_URL = "http://127.0.0.1:8000"

_KEY_IN_PATH = re.compile(r"/key/([^/]+)")


@dataclass(frozen=True)
class Address:
    """Where a server is.

    Attributes:
        url: scheme, host, port and perhaps a path, without a slash at the end. It has no key, so
            it may stand in messages.
        key: the API key, or None.
    """

    url: str
    key: str | None = field(repr=False)

    @property
    def is_loopback(self) -> bool:
        """Whether the server is on this machine. No proxy of the environment is used then."""
        host = urlsplit(self.url).hostname or ""
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return host == "localhost"


def address_of(url: str | None, key: str | None) -> Address:
    """Return the address that the arguments or the environment name.

    Args:
        url: `http://host:port`. None: `SAMSERVE_URL`, or a server on this machine. The address that
            QuPath takes (`…/sam/`, perhaps with `/key/<key>`) is taken, too.
        key: the API key. None: `SAMSERVE_API_KEY`, or none.

    Raises:
        ValueError: the URL or the key cannot be one.
    """
    text = (url or os.environ.get(URL_VARIABLE) or DEFAULT_URL).strip()
    if "://" not in text:
        text = f"http://{text}"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ValueError(f"The server's address is no URL: {exc}.") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError(
            f"The server's address must be as {DEFAULT_URL} or https://host, not {_shown(text)!r}."
        )
    path = parts.path
    in_path = _KEY_IN_PATH.search(path)
    if in_path is not None:
        key = key or unquote(in_path[1])
        path = path[: in_path.start()] + path[in_path.end() :]
    path = path.rstrip("/").removesuffix("/sam")
    key = key or os.environ.get(KEY_VARIABLE) or None
    if key is not None and (not key.isascii() or not key.isprintable() or " " in key):
        raise ValueError("The API key must be of printable ASCII characters, without spaces.")
    literal = f"[{host}]" if ":" in host else host
    netloc = literal if port is None else f"{literal}:{port}"
    return Address(f"{parts.scheme}://{netloc}{path}", key)


def _shown(text: str) -> str:
    """Return a URL for a message, without what may be a secret."""
    return _KEY_IN_PATH.sub("/key/…", re.sub(r"//[^/@]*@", "//…@", text))[:200]
