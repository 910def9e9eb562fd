"""Checks, before anything starts, who may use the server."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from samserve_gateway.access_modes import MEANING, check_access
from samserve_gateway.keys import KeysFileError
from samserve_gateway.settings import KEYS_FILE, OPEN, Settings

from .errors import ServerError
from .options import Options


def keys_file() -> Path | None:
    """Return the absolute path of the file of API keys; None if the server wants none."""
    name = os.environ.get(KEYS_FILE)
    return Path(name).resolve() if name else None


def access(options: Options) -> str:
    """Return who may use a server with these options, in words.

    Raises:
        ServerError: it would be open to the network, and nobody has said so; or the file of keys is
            wrong.
    """
    environ = {name: os.environ[name] for name in (KEYS_FILE, OPEN) if name in os.environ}
    try:
        settings = Settings.from_environ({**environ, "SAMSERVE_HOST": options.host})
        return MEANING[check_access(settings)]
    except ValidationError as exc:
        raise ServerError(f"{OPEN} must be 1 or 0.") from exc
    except KeysFileError as error:
        raise ServerError(str(error)) from error
