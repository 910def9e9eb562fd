"""`python -m gateway`: run the gateway with the settings of the environment."""

from __future__ import annotations

import logging
import sys

import uvicorn

from samserve.logs import JsonFormatter

from .app import create_app
from .settings import Settings


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    settings = Settings.from_environ()
    console = logging.StreamHandler(sys.stdout)
    console.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[console], level=settings.log_level.upper())
    logging.captureWarnings(True)
    # Of requests, `observed.py` tells. uvicorn's other lines take the way of all.
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
    )


if __name__ == "__main__":
    main()
