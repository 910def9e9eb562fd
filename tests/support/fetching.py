"""Weights that a registration fetches, and the refusals."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from samserve.archives.register import Registration, fetch_weights
from samserve.errors import SamserveError
from tests.support.addresses import Address


def fetched(registration: Registration) -> tuple[str, bytes]:
    """Return the kind of source, and the content."""
    target = Path(registration.incoming, "target")
    source = fetch_weights(registration, target, lambda message, percent: None)
    return source, target.read_bytes()


def refusal_of(registration: Registration) -> SamserveError:
    with pytest.raises(SamserveError) as refused:
        fetched(registration)
    assert refused.value.field == "url"
    assert os.listdir(registration.incoming) == []
    return refused.value


def downloaded(
    registration: Registration, address: Address, url: str | None = None
) -> Registration:
    origin = address.url.removesuffix("/file")
    return replace(registration, url=url or address.url, origins=[origin])


def parts_of(registration: Registration) -> list[str]:
    return sorted(os.listdir(registration.parts))
