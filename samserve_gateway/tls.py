"""The gateway's certificate for TLS, from files that may change while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
from pathlib import Path

from .settings import Settings

logger = logging.getLogger(__name__)

CHECK_INTERVAL_S = 10.0
"""Seconds between two looks at the files. Certificates are renewed days before they expire."""


class CertificateError(Exception):
    """A certificate or its key cannot be used. The message says why."""


class Certificate:
    """A certificate and its key.

    Args:
        certificate: a PEM file with the certificate, and those between it and its authority.
        key: a PEM file with the private key, without a passphrase.

    Attributes:
        context: what TLS connections are made with. It always has the last certificate that could
            be used.

    Raises:
        CertificateError: the files cannot be used.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate = certificate
        self._key = key
        self._state = self._files()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._load(self.context)

    async def watch(self) -> None:
        """Load the files again whenever they change. Connections that are open stay as they are."""
        while True:
            await asyncio.sleep(CHECK_INTERVAL_S)
            self.check()

    def check(self) -> None:
        """Load the files again if they have changed. If they cannot be used, nothing changes."""
        try:
            state = self._files()
            if state == self._state:
                return
            self._state = state
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a failure would spoil the other
            self._load(self.context)
        except CertificateError as exc:
            logger.warning("%s The certificate from before stays in use.", exc)
        else:
            logger.warning("The certificate %s was loaded anew.", self._certificate)

    def _files(self) -> list[tuple[int, int, int]]:
        """Return what changes when a file changes."""
        try:
            states = [path.stat() for path in (self._certificate, self._key)]
        except OSError as exc:
            raise CertificateError(f"{exc.filename} cannot be read: {exc.strerror}.") from exc
        return [(state.st_ino, state.st_mtime_ns, state.st_size) for state in states]

    def _load(self, context: ssl.SSLContext) -> None:
        try:
            # Without a passphrase here, OpenSSL would ask for one on the terminal.
            context.load_cert_chain(self._certificate, self._key, password="")
        except ssl.SSLError as exc:
            raise CertificateError(
                f"{self._certificate} and {self._key} are no certificate with its key, both in PEM "
                f"and without a passphrase ({exc.reason or 'no PEM'})."
            ) from exc
        except OSError as exc:
            raise CertificateError(
                f"{self._certificate} or {self._key} cannot be read: {exc.strerror}."
            ) from exc


def certificate_of(settings: Settings) -> Certificate | None:
    """Return the certificate that the settings name; None if they name none.

    Raises:
        CertificateError: the files cannot be used.
    """
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Certificate(settings.tls_certificate, settings.tls_key)
