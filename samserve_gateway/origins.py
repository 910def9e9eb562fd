"""Protects a gateway without API keys from the web pages that its users have open.

A page of any web site can send requests from its visitor's browser to `http://127.0.0.1:8000`,
where no firewall is in the way. It cannot read the answers, but the work is done. With API keys
this is no danger, because the page does not know the key. Without keys:

- A request that a browser sends for another site's page is refused. Browsers say so in `Origin`
  and `Sec-Fetch-Site`. Programs, such as QuPath and curl, send neither.
- On loopback, a request for an unknown host name is refused: a web site can let its own name lead
  to 127.0.0.1 (DNS rebinding), and then even read the answers.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from samserve.errors import Forbidden, quoted

from .access_modes import Mode
from .settings import PREFIX, Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Requests that change nothing and take no worker's time. A page cannot read their answers."""


class Origins:
    """Decides which requests of browsers a gateway takes.

    Args:
        mode: who may use the gateway.
    """

    def __init__(self, settings: Settings, mode: Mode) -> None:
        self._mode = mode
        self._origins = frozenset(map(_without_default_port, settings.cors_origins.split()))
        self._allowed = frozenset(settings.allowed_hosts.lower().split())
        self._hosts = self._allowed | {settings.host.lower()}

    def check(self, method: str, headers: Headers) -> None:
        """Check whose page sends a request, and to which host.

        Raises:
            Forbidden: the message names the setting that would allow it.
        """
        if self._mode == "keys":
            return
        host = headers.get("host", "").lower()
        if self._mode == "loopback" and host:
            self._check_host(host)
        if method not in SAFE_METHODS:
            self._check_page(headers, host)

    def _check_host(self, host: str) -> None:
        name = _name_of(host)
        if name not in self._hosts and not _is_this_machine(name):
            raise Forbidden(
                "This server is for its own machine, and the request's `Host` header names another "
                "one. Use http://127.0.0.1 or http://localhost, or add the host to "
                f"{PREFIX}ALLOWED_HOSTS."
            )

    def _check_page(self, headers: Headers, host: str) -> None:
        origin = _without_default_port(headers.get("origin", ""))
        if origin in self._origins:
            return
        if origin:
            scheme, _, page = origin.partition("://")
            here = _without_default_port(f"{scheme}://{host}")
            if page and (origin == here or _name_of(page) in self._allowed):
                return
        elif headers.get("sec-fetch-site", "none") in ("same-origin", "none"):
            return
        raise Forbidden(
            f"A web page of {quoted(origin or 'another site')} sent this request, and this server "
            f"wants no API keys. If the page may do so, add its address to {PREFIX}CORS_ORIGINS. "
            "If it is this server's own page behind a proxy, add its host to "
            f"{PREFIX}ALLOWED_HOSTS."
        )


_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def _without_default_port(origin: str) -> str:
    """Return an origin in lower case, and without the port that its scheme has by default.

    Browsers leave that port out of `Origin`, but other programs and settings may name it.
    """
    origin = origin.lower()
    return origin.removesuffix(_DEFAULT_PORTS.get(origin.partition("://")[0], ""))


def _name_of(host: str) -> str:
    """Return the name in a `Host` header, without port and brackets; "" if it cannot be read.

    A dot at the end of a name only says that the name is complete.
    """
    try:
        return (urlsplit(f"//{host}").hostname or "").removesuffix(".")
    except ValueError:
        return ""


def _is_this_machine(name: str) -> bool:
    """Return whether a name is this machine's for every client. It is not looked up in the DNS,
    because a web site decides to which address its own name leads."""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
