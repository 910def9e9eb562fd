"""Fixtures of the tests of the folder store."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from samserve.embeddings.folder_store import FolderStore
from tests.support.stored_entries import MEGABYTE


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
