"""Watches whether a server on this machine still answers.

A process that runs but no longer answers must be started again, as one that ended. Only its answers
show the difference.
"""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path

import requests

from .loopback import LoopbackSession

SILENT_S = 60.0
"""A server that has not answered for this long hangs. TorchServe and the gateway answer these
requests in milliseconds, whatever their workers do."""

EVERY_S = 5.0


class Health:
    """Asks a server again and again, in a thread, until `close`.

    Args:
        url: the address of the request; any answer is an answer.
        certificate: PEM file of the certificate, if the server speaks HTTPS.
    """

    def __init__(self, url: str, certificate: Path | None = None) -> None:
        self._url = url
        self._http = LoopbackSession(EVERY_S, certificate)
        self._closed = threading.Event()
        self._heard: float | None = None
        threading.Thread(target=self._watch, name="health", daemon=True).start()

    def is_silent(self) -> bool:
        """Return whether the server answered once, and has not answered for `SILENT_S` since."""
        heard = self._heard
        return heard is not None and time.monotonic() - heard > SILENT_S

    def restart(self) -> None:
        """Forget the answers so far: the server is being started again."""
        self._heard = None

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()

    def _watch(self) -> None:
        with self._http:
            while not self._closed.wait(EVERY_S):
                # A silence of ours, as when the machine was suspended, is not the server's.
                asked = time.monotonic()
                with contextlib.suppress(requests.RequestException):
                    self._http.get(self._url)
                    self._heard = time.monotonic()
                if self._heard is not None and time.monotonic() - asked > SILENT_S / 2:
                    self._heard = time.monotonic()
