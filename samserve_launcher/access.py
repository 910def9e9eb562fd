"""Checks the gateway's settings before anything starts: above all, who may use the server."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import ValidationError

from samserve_gateway.access_modes import MEANING, check_access
from samserve_gateway.keys import KeysFileError
from samserve_gateway.settings import ADMIN_TOKEN, KEYS_FILE, Settings, problems
from samserve_gateway.tls import CertificateError, certificate_of

from .errors import ServerError
from .options import Options


def keys_file() -> Path | None:
    """Return the absolute path of the file of API keys; None if the server wants none."""
    name = os.environ.get(KEYS_FILE)
    return Path(name).resolve() if name else None


def access(options: Options) -> str:
    """Return who may use a server with these options, in words.

    Raises:
        ServerError: a setting of the gateway is wrong, it would be open to the network and nobody
            has said so, or the file of keys or the certificate cannot be used.
    """
    try:
        settings = Settings.from_environ({**os.environ, **gateway_environment(options)})
        certificate_of(settings)
        return MEANING[check_access(settings)]
    except ValidationError as exc:
        raise ServerError("\n".join(problems(exc))) from exc
    except CertificateError as error:
        raise ServerError(f"the certificate for TLS: {error}") from error
    except KeysFileError as error:
        raise ServerError(str(error)) from error


def gateway_environment(options: Options) -> dict[str, str]:
    """Return the variables with the gateway's settings that these options decide.

    Paths are absolute, because the gateway runs in another folder.
    """
    return {
        "SAMSERVE_HOST": options.host,
        "SAMSERVE_PORT": str(options.port),
        "SAMSERVE_MODELS": options.models,
        "SAMSERVE_JOBS_DIRECTORY": str(options.jobs_dir),
        "SAMSERVE_WEIGHTS_DIR": str(options.weights_dir.resolve()),
        "SAMSERVE_MODEL_STORE": str(options.model_store.resolve()),
        "SAMSERVE_MODELS_DIR": str(options.models_dir),
        **{name: os.environ[name] for name in [ADMIN_TOKEN] if name in os.environ},
        **({} if keys_file() is None else {KEYS_FILE: str(keys_file())}),
        **{f"SAMSERVE_{name.upper()}": value for name, value in addresses(options).items()},
        **_tls(options),
    }


def addresses(options: Options) -> dict[str, str]:
    """Return the addresses and the token file of this server's TorchServe."""
    return {
        "inference_url": options.inference_url,
        "management_url": options.management_url,
        "key_file": str(options.key_file),
    }


def _tls(options: Options) -> dict[str, str]:
    """Return the variables with the gateway's certificate and key."""
    files = {"CERTIFICATE": options.tls_certificate, "KEY": options.tls_key}
    # Links stay links: a renewal of the certificate changes their targets.
    return {f"SAMSERVE_TLS_{n}": str(p.absolute()) for n, p in files.items() if p is not None}
