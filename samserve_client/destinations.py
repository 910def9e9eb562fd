"""Where the files about pictures go, and why they cannot go there."""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from .outputs import Output

WRITES_NOTHING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Errors of a disk that every further file would have as well."""


class NotWritten(Exception):
    """A file could not be written.

    Attributes:
        hopeless: whether no further file can be written either.
    """

    def __init__(self, path: Path, reason: Exception) -> None:
        why = reason.strerror if isinstance(reason, OSError) else None
        super().__init__(f"{path} cannot be written: {why or reason}")
        self.hopeless = isinstance(reason, OSError) and reason.errno in WRITES_NOTHING


@dataclass(frozen=True)
class Work:
    """One picture, and where its files go.

    Attributes:
        source: the picture's file.
        target: the path of its files, without their endings.
        named: the path of the only file, if the user named it.
    """

    source: Path
    target: Path
    named: Path | None = None


def works_of(pictures: Sequence[tuple[Path, Path]], folder: Path) -> list[Work]:
    """Return where the files of each picture go: to its name without ending, below a folder.

    Where two pictures differ in their endings only, their files keep them.

    Raises:
        ValueError: two pictures have the same name.
    """
    stems = [below.with_suffix("") for _, below in pictures]
    targets = [
        folder / (below if stems.count(stem) > 1 else stem)
        for (_, below), stem in zip(pictures, stems, strict=True)
    ]
    seen: dict[Path, Path] = {}
    for (source, _), target in zip(pictures, targets, strict=True):
        if target in seen:
            raise ValueError(
                f"the files about {seen[target]} and {source} would have the same names: segment "
                "them by two commands, with different folders"
            )
        seen[target] = source
    return [Work(source, target) for target, source in seen.items()]


def path_of(work: Work, output: Output, suffix: str | None) -> Path:
    """Return the path of a file about a picture.

    Args:
        suffix: names the page of a stack; None for its only one.
    """
    if work.named is not None:
        named = work.named
        return named if suffix is None else named.with_name(named.stem + suffix + named.suffix)
    return work.target.with_name(f"{work.target.name}{suffix or ''}{output.ending}")


def refuse_to_overwrite(works: Sequence[Work], outputs: Collection[Output]) -> None:
    """Check that no file would be written in place of a picture.

    Raises:
        ValueError: a picture would be lost.
    """
    pictures = {os.path.realpath(work.source) for work in works}
    for work in works:
        for output in outputs:
            path = path_of(work, output, None)
            linked = path.exists() and work.source.exists() and path.samefile(work.source)
            if linked or os.path.realpath(path) in pictures:
                raise ValueError(
                    f"{path} is one of the pictures and would be lost: choose another -o"
                )


def check_writable(folder: Path) -> None:
    """Check before any work that files can be written to a folder, or that it can be created.

    Raises:
        OSError: they cannot.
    """
    existing = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(existing))
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(existing))
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(existing))
