"""What the machine offers."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from samserve.machine import available_memory, resident_memory

MEMINFO = "MemTotal:       2000 kB\nMemAvailable:   1000 kB\n"


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def container(folder: Path, limit: str) -> Path:
    (folder / "memory.max").write_text(limit)
    (folder / "memory.current").write_text("500000\n")
    (folder / "memory.stat").write_text("anon 400000\ninactive_file 100000\n")
    return folder


def test_the_machines_memory(meminfo: Path, tmp_path: Path) -> None:
    assert available_memory(meminfo, tmp_path / "none") == 1_024_000


@pytest.mark.parametrize(
    ("limit", "available"),
    [("600000\n", 200_000), ("max\n", 1_024_000), ("9000000\n", 1_024_000), ("1\n", 0)],
)
def test_a_containers_memory(meminfo: Path, tmp_path: Path, limit: str, available: int) -> None:
    """Its file cache is given back when a process needs memory."""
    assert available_memory(meminfo, container(tmp_path, limit)) == available


@pytest.mark.parametrize("content", ["", "MemAvailable:\n", "MemAvailable: many kB\n"])
def test_a_system_that_does_not_say(tmp_path: Path, content: str) -> None:
    (tmp_path / "meminfo").write_text(content)
    assert available_memory(tmp_path / "meminfo", tmp_path) is None
    assert available_memory(tmp_path / "none", tmp_path) is None


def test_the_memory_of_a_process() -> None:
    assert (resident_memory(os.getpid()) or 0) > 2**20
    assert resident_memory(2**30) is None
