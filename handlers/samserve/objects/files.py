"""This module writes a file completely or not at all."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PART_NAME = re.compile(r"\..*\.(\d+)\.part(?:\.\w+)?(?:-journal)?")
"""The name of a file that is being written, with the process that writes it."""


@contextmanager
def written(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a path to write to, in the same folder. At the end, rename it to `path`.

    If the block raises an error, `path` stays as it was. Its folder is created.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last: libraries choose a format by it.
    part = target.with_name(f".{target.stem}.{os.getpid()}.part{target.suffix}")
    try:
        yield part
        _flush(part)
        os.replace(part, target)
    finally:
        # Also an SQLite file's journal, if the writer was interrupted.
        for left in (part, part.with_name(f"{part.name}-journal")):
            left.unlink(missing_ok=True)


def write(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file completely or not at all."""
    with written(path) as part:
        part.write_bytes(content)


def remove_left_parts(folder: Path) -> None:
    """Remove the unfinished files of processes that no longer run from a folder."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(folder):
            process = _PART_NAME.fullmatch(name)
            if process is not None and not _runs(int(process[1])):
                (folder / name).unlink(missing_ok=True)


def _runs(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _flush(path: Path) -> None:
    # Without it, a power failure after the rename can leave an empty file.
    with path.open("rb") as file:
        os.fsync(file.fileno())
