"""`python -m samserve_gateway`: run the gateway with the settings of the environment."""

from __future__ import annotations

import argparse
import logging
import sys

import uvicorn
from pydantic import ValidationError

from samserve.serving.logs import JsonFormatter

from .app import create_app
from .keys import KeysFileError
from .protocol import Protocol
from .settings import PREFIX, Settings

KEEP_ALIVE_S = 75
"""Clients and proxies keep an idle connection for less time than this, so that they close it, not
the gateway: a body sent while the gateway closes the connection is lost. uvicorn's default, 5 s,
is about the time between two clicks."""


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGINT or SIGTERM. Return the exit status."""
    argparse.ArgumentParser(
        prog="samserve gateway",
        description="Run the gateway alone. Its settings are environment variables, SAMSERVE_….",
    ).parse_args(arguments)
    try:
        settings = Settings.from_environ()
    except ValidationError as exc:
        for error in exc.errors(include_url=False, include_input=False):
            name = PREFIX + "_".join(map(str, error["loc"])).upper() if error["loc"] else "settings"
            print(f"{name}: {error['msg'].removeprefix('Value error, ')}", file=sys.stderr)
        return 2
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[console], level=settings.log_level.upper())
    logging.captureWarnings(True)
    try:
        app = create_app(settings)
    except KeysFileError as error:
        print(f"samserve gateway: {error}", file=sys.stderr)
        return 2
    # `request_log.py` logs the requests. uvicorn's other messages go to the root logger.
    uvicorn.run(
        app,
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        timeout_keep_alive=KEEP_ALIVE_S,
        http=Protocol,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=settings.trusted_proxies,
        ws="none",  # `Protocol` ignores an offered websocket, as it ignores other protocols
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
