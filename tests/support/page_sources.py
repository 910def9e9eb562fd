"""The sources of the page, with the packages that its lock pins."""

from __future__ import annotations

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import ROOT

SOURCES = ROOT / "page"
BUILT = ROOT / "samserve_gateway" / "page"


def copy_with_packages(factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the sources, beside which the pinned packages are installed: one for all."""
    return _copy(str(factory.getbasetemp()))


def node_modules(factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the pinned packages."""
    return copy_with_packages(factory) / "node_modules"


@cache
def _copy(base: str) -> Path:
    copy = Path(base) / "page"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("node_modules"))
    run("npm", "ci", "--no-audit", "--no-fund", cwd=copy)
    return copy


def run(*command: str, cwd: Path) -> None:
    """Run a program, and show what it wrote if it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
