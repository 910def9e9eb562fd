"""`python -m samserve_gateway`: run the gateway with the settings of the environment."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import resource
import sys

import uvicorn
from pydantic import ValidationError
from starlette.types import ASGIApp

from samserve.serving.logs import JsonFormatter

from .app import create_app
from .keys import KeysFileError
from .listening import OpenSockets, listeners
from .protocol import Protocol
from .settings import PREFIX, Settings, problems
from .tls import Certificate, CertificateError, certificate_of
from .tracebacks import RepeatedTracebacks

KEEP_ALIVE_S = 75
"""Clients and proxies keep an idle connection for less time than this, so that they close it, not
the gateway: a body sent while the gateway closes the connection is lost. uvicorn's default, 5 s,
is about the time between two clicks."""

STARTUP_FAILURE = 3
"""The exit status if the server cannot start, as when its port is taken. uvicorn has the same."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Return the exit status."""
    argparse.ArgumentParser(
        prog="samserve gateway",
        description="Run the gateway alone. Its settings are environment variables, SAMSERVE_….",
    ).parse_args(arguments)
    try:
        settings = Settings.from_environ()
    except ValidationError as exc:
        print("\n".join(problems(exc)), file=sys.stderr)
        return 2
    try:
        certificate = certificate_of(settings)
    except CertificateError as exc:
        print(f"{PREFIX}TLS_CERTIFICATE, {PREFIX}TLS_KEY: {exc}", file=sys.stderr)
        return 2
    _log_to_stdout(settings.log_level)
    _raise_file_limit()
    counts = OpenSockets(
        settings.max_connections,
        settings.max_connections_per_address,
        tls=certificate is not None,
    )
    try:
        app = create_app(settings, counts)
    except KeysFileError as error:
        print(f"samserve gateway: {error}", file=sys.stderr)
        return 2
    # What the start has made stays for good: the collector need not look at it again and again.
    gc.collect()
    gc.freeze()
    try:
        sockets = listeners(settings.host, settings.port, counts)
    except OSError as exc:
        print(
            f"samserve gateway: it cannot listen on {settings.host}, port {settings.port}: "
            f"{exc.strerror or exc}. Set {PREFIX}HOST or {PREFIX}PORT.",
            file=sys.stderr,
        )
        return STARTUP_FAILURE
    server = Server(_config(app, settings, certificate), certificate, counts)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets)
    return 0 if server.started else STARTUP_FAILURE


class Server(uvicorn.Server):
    """uvicorn's server, which also watches handshakes, and whether its certificate has changed."""

    def __init__(
        self, config: uvicorn.Config, certificate: Certificate | None, counts: OpenSockets
    ) -> None:
        super().__init__(config)
        self._certificate = certificate
        self._counts = counts

    async def main_loop(self) -> None:
        """Serve until a signal comes."""
        if self._certificate is None:
            await super().main_loop()
            return
        watching = [
            asyncio.create_task(self._certificate.watch()),
            asyncio.create_task(self._counts.end_slow_handshakes()),
        ]
        try:
            await super().main_loop()
        finally:
            for task in watching:
                task.cancel()


def _config(app: ASGIApp, settings: Settings, certificate: Certificate | None) -> uvicorn.Config:
    """Return uvicorn's settings."""
    # `request_log.py` logs the requests. uvicorn's other messages go to the root logger.
    return uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        http=Protocol,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        loop="asyncio",  # its transports close the sockets that `OpenSockets` counts
        ws="none",  # `Protocol` ignores an offered websocket, as it ignores other protocols
        ssl_context_factory=None if certificate is None else lambda *_: certificate.context,
    )


def _log_to_stdout(level: str) -> None:
    """Log from this level on, as lines of JSON."""
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(JsonFormatter())
    console.addFilter(RepeatedTracebacks())
    logging.basicConfig(handlers=[console], level=level.upper())
    logging.captureWarnings(True)
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Return whether a log record of uvicorn says something that `protocol.py` does not log."""
    return record.msg != "Invalid HTTP request received."


def _raise_file_limit() -> None:
    """Allow as many open files as the system allows: each connection needs one, and another one
    for its request to TorchServe."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
