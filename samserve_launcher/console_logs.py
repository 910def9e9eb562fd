"""The files with the output of the launcher's processes. Each is bounded.

A process writes to its file until it ends, and appends. So a full file is not renamed: its content
is copied to `<name>.1`, and the file is emptied. Lines that are written between the two steps are
lost; they are those of some milliseconds.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

MAX_BYTES = 10 * 2**20
"""A file with more is emptied, within a second."""

N_KEPT = 5
"""The number of copies that are kept: `<name>.1` is the newest."""


def rotate(path: Path, max_bytes: int = MAX_BYTES) -> None:
    """Empty a file that has more than `max_bytes`, and keep a copy of its content."""
    if not path.exists() or path.stat().st_size <= max_bytes:
        return
    for number in range(N_KEPT, 1, -1):
        older = _copy_of(path, number - 1)
        if older.exists():
            older.replace(_copy_of(path, number))
    shutil.copyfile(path, _copy_of(path, 1))
    os.truncate(path, 0)


def end_of(path: Path, n_bytes: int = 2000) -> str:
    """Return the last bytes of a file and, if it is shorter, of its newest copy before them."""
    end = b""
    for part in (path, _copy_of(path, 1)):
        if len(end) < n_bytes and part.exists():
            end = _end_of(part, n_bytes - len(end)) + end
    return end.decode(errors="replace")


def _end_of(path: Path, n_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - n_bytes))
        return file.read(n_bytes)


def _copy_of(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
