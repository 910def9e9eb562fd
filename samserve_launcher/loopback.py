"""An HTTP client of servers on this machine."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter


class LoopbackSession(requests.Session):
    """A `requests.Session` that uses no proxy of the environment, and waits for a bounded time.

    Args:
        timeout_s: seconds to connect, and between two pieces of the answer, if a request names no
            `timeout` itself.
        certificate: PEM file of the only certificate that an HTTPS server may have.
    """

    def __init__(self, timeout_s: float, certificate: Path | None = None) -> None:
        super().__init__()
        self.trust_env = False
        self._timeout_s = timeout_s
        self.mount("http://", _Adapter())
        if certificate is not None:
            self.verify = str(certificate)
            self.mount("https://", _PinningAdapter())

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request that was prepared, as `requests.Session.send` does."""
        options["timeout"] = options.get("timeout") or self._timeout_s
        return super().send(request, **options)


class _Adapter(HTTPAdapter):
    """Closes its connections when it is closed.

    `HTTPAdapter` leaves them open until the last response is garbage-collected, and a worker that
    drains waits for open connections.
    """

    def close(self) -> None:
        pools = self.poolmanager.pools
        keys = pools.keys()  # a container that cannot be iterated itself
        for key in keys:
            pools[key].close()
        super().close()


class _PinningAdapter(_Adapter):
    """Trusts the certificate that the session names, whoever signed it and whichever host it names.

    A server on this machine has a certificate for its name in the network.
    """

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        """Make the pools of connections."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        super().init_poolmanager(*args, ssl_context=context, assert_hostname=False, **options)


def get(url: str, timeout_s: float, **options: Any) -> requests.Response:
    """Send one GET, as `requests.get` does."""
    with LoopbackSession(timeout_s) as http:
        return http.get(url, **options)


def post(url: str, timeout_s: float, **options: Any) -> requests.Response:
    """Send one POST, as `requests.post` does."""
    with LoopbackSession(timeout_s) as http:
        return http.post(url, **options)
