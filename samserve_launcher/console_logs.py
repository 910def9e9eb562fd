"""The files with the output of the launcher's processes. Each is bounded.

A process writes to its file until it ends, and appends. So a full file is not renamed: its content
is copied to `<name>.1`, and the file is emptied. Lines that are written between the two steps are
lost; they are those of some milliseconds.
"""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

from samserve.serving.logs import JsonFormatter

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


START = "A new process starts. It writes the lines below."


def begin(path: Path) -> None:
    """Begin the file of a new process. The output of the one before it is kept, in a copy."""
    rotate(path, max_bytes=0)
    record = logging.LogRecord(__name__, logging.INFO, __file__, 0, START, None, None)
    path.write_text(JsonFormatter().format(record) + "\n")


def end_of(path: Path, n_bytes: int = 2000) -> str:
    """Return the last bytes that the last process wrote.

    They are in the file and, if it was emptied meanwhile, in its newest copy.
    """
    end = b""
    for part in (path, _copy_of(path, 1)):
        if len(end) < n_bytes and part.exists():
            end = _end_of(part, n_bytes - len(end)) + end
    _, begun, output = end.decode(errors="replace").rpartition(START)
    return output.partition("\n")[2] if begun else output


def _end_of(path: Path, n_bytes: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - n_bytes))
        return file.read(n_bytes)


def _copy_of(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
