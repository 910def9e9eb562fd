"""This module has what the tests of the folder store share: sizes, and functions for its files."""

from __future__ import annotations

import inspect
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.paths import ROOT

MEGABYTE = 1 << 20

PAGE = 4096

HEADER = 20

KEY = "vit_t-0123456789abcdef"

ONE_PAGE = bytes(PAGE - HEADER)  # with its header

Warned = Callable[[], list[str]]


def entry(folder: Path, key: str = KEY) -> Path:
    return folder / f"{key}.embedding"


def names(folder: Path) -> set[str]:
    """Return the keys of the entries, and the names of files that are neither entries nor locks."""
    return {
        path.name.removesuffix(".embedding")
        for path in folder.iterdir()
        if not path.name.startswith(".lock")
    }


def taken(folder: Path) -> int:
    """Return the bytes that all files take, in whole pages."""
    return sum(-(-path.lstat().st_size // PAGE) * PAGE for path in folder.iterdir())


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.002)


@contextmanager
def running(
    child: Callable[..., None], *args: object, prefix: tuple[str, ...] = ()
) -> Iterator[subprocess.Popen[str]]:
    """Run a function `child_…` of a test module in another process, until the block ends."""
    module = f"tests.unit.embeddings.{Path(inspect.getfile(child)).stem}"
    code = f"import sys; from {module} import {child.__name__} as child"
    process = subprocess.Popen(
        [*prefix, sys.executable, "-c", f"{code}; child(*sys.argv[1:])", *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def finish(process: subprocess.Popen[str]) -> str:
    """Wait for a process, which must succeed, and return what it logged."""
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors
    return errors
