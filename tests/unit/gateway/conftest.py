"""A gateway in front of a stand-in for TorchServe, both on real sockets."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support import torchserve


@pytest.fixture
def gateway() -> Iterator[torchserve.Gateway]:
    with torchserve.gateway() as gateway:
        yield gateway
