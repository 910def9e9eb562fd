"""The kinds of values that the gateway's settings have, and what is said of a wrong one.

Each is a type of a field in `settings.py`. A wrong value gets a sentence that says what is right.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, SecretStr

from samserve.model_types import MODEL_TYPES

_HOST_NAME = re.compile(r"[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"https?://[^\s/?#@]+")


def _is_origin(text: str) -> bool:
    if not _ORIGIN.fullmatch(text):
        return False
    try:
        parts = urlsplit(text)
        return parts.hostname is not None and parts.port != 0  # asking for the port checks it
    except ValueError:
        return False


def _switch(value: object) -> object:
    """Return whether a switch is on. Texts such as `yes` are refused, because `no`, `off` and
    `false` would be guesses, too."""
    switches = {"0": False, "1": True}
    if not isinstance(value, str):
        return value
    if value not in switches:
        raise ValueError(f"{value!r} is neither 1 (on) nor 0 (off)")
    return switches[value]


def _origins(value: str) -> str:
    for word in value.split():
        if not _is_origin(word):
            raise ValueError(
                f"{word!r} is no origin: each has the form https://host or https://host:port, "
                "and spaces are between them"
            )
    return value


def _host_names(value: str) -> str:
    for word in value.split():
        if not _HOST_NAME.fullmatch(word):
            raise ValueError(
                f"{word!r} is no host name, as sam.example.org: without http:// and without a port"
            )
    return value


def _address(value: str) -> str:
    if not _is_origin(value):
        raise ValueError(f"{value!r} is no address of the form http://host:port, without a path")
    return value


def _networks(value: str) -> str:
    for word in value.split(",") if value.strip() else []:
        try:
            ipaddress.ip_network(word.strip())
        except ValueError as exc:
            raise ValueError(
                f"{word.strip()!r} is no address or network such as 10.1.2.3 or 10.1.0.0/16, with "
                f"commas between them ({exc})"
            ) from exc
    return value


def _redis_url(value: SecretStr) -> SecretStr:
    from redis.connection import parse_url  # imported only where a Redis is configured

    try:
        parse_url(value.get_secret_value())  # type: ignore[no-untyped-call]
    except ValueError:
        # No message repeats the address, or a part of it: it may have a password.
        raise ValueError("it is no address of the form redis://host:port/0") from None
    return value


def _model_types(value: str) -> str:
    unknown = [name for name in value.split() if name not in MODEL_TYPES]
    if unknown or not value.split():
        wrong = f"there is no model type {unknown[0]!r}" if unknown else "it names no model type"
        raise ValueError(f"{wrong}; there are {', '.join(MODEL_TYPES)}")
    return value


Switch = Annotated[bool, BeforeValidator(_switch)]
"""1 or 0."""

Origins = Annotated[str, AfterValidator(_origins)]
"""Web origins, with spaces between them."""

HostNames = Annotated[str, AfterValidator(_host_names)]
"""Names of hosts, with spaces between them."""

ServerAddress = Annotated[str, AfterValidator(_address)]
"""The address of a server, without a path."""

Networks = Annotated[str, AfterValidator(_networks)]
"""Addresses and networks, with commas between them."""

RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]
"""The address of a Redis, which may have a password."""

ModelTypes = Annotated[str, AfterValidator(_model_types)]
"""Model types, one at least, with spaces between them."""
