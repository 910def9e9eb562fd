"""Fixtures of the tests of the folder store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from samserve.embeddings import folder_store
from samserve.embeddings.folder_store import FolderStore
from tests.support.stored_entries import MEGABYTE


@pytest.fixture(autouse=True)
def no_pause_between_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a warning appear again within a minute."""
    monkeypatch.setattr(folder_store, "LOG_EVERY_S", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "shared" / "embeddings"


@pytest.fixture
def store(folder: Path) -> FolderStore:
    return FolderStore(folder, MEGABYTE)


@pytest.fixture
def warned(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return the warnings since the last call."""

    def take() -> list[str]:
        messages = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        caplog.clear()
        return messages

    return take
