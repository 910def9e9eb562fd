"""`python -m gateway`: run the gateway with the settings of the environment."""

from __future__ import annotations

import uvicorn

from .app import create_app
from .settings import Settings


def main() -> None:
    """Serve until SIGINT or SIGTERM."""
    settings = Settings.from_environ()
    # TorchServe's access log rolls over; this one would only grow.
    uvicorn.run(create_app(settings), host=settings.host, port=settings.port, access_log=False)


if __name__ == "__main__":
    main()
