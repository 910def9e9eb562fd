"""A registration of weights, and the address from which it may download."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from samserve.archives.register import Registration
from tests.support.addresses import CONTENT, Address, serving


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as address:
        address.etag = '"first"'
        yield address


@pytest.fixture
def registration(tmp_path: Path) -> Registration:
    """A registration of `mine.pt` in the weights folder. The parent folder has a file, too."""
    weights_dir, incoming = tmp_path / "weights", tmp_path / "incoming"
    weights_dir.mkdir()
    incoming.mkdir()
    (weights_dir / "mine.pt").write_bytes(CONTENT)
    (tmp_path / "outside.pt").write_bytes(CONTENT)
    return Registration(
        type="vit_t",
        name="mine",
        url="mine.pt",
        incoming=str(incoming),
        parts=str(tmp_path / "parts"),
        weights_dir=str(weights_dir),
        model_store=str(tmp_path),
        models_dir=str(tmp_path / "models"),
        origins=[],
        max_bytes=len(CONTENT),
    )
