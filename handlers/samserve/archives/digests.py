"""This module writes the SHA-256 digests of an archive's files, and compares the files with them.

An archive has them in `digests.json`. They find a file that was damaged or changed by mistake: on a
disk, on its way to another machine, or in the folder to which an archive was unpacked. They are no
signature: whoever can change a file of an archive can change the digests, too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from samserve.model_types import sha256_of

DIGESTS = "digests.json"
_OWN = {DIGESTS, "MAR-INF/MANIFEST.json"}
"""Files that have no digest: this one, and the archiver's, which has the time of the build."""


class DamagedArchive(Exception):
    """A file of an archive is not the one that was put into it. The message names the file."""


def digests_of(members: Mapping[str, Path], known: Mapping[Path, str]) -> str:
    """Return the content of `digests.json`.

    Args:
        members: from the name in the archive to the path of the file.
        known: digests that need not be computed again.
    """
    digests = {name: known.get(path) or sha256_of(path) for name, path in members.items()}
    return json.dumps(digests, indent=1, sort_keys=True)


def check_unpacked(folder: Path) -> None:
    """Check the files of an archive that was just unpacked. A file that is absent is not noticed.

    Raises:
        DamagedArchive: a file differs or does not belong to the archive, or there are no digests.
    """
    digests = _read(folder)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name not in _OWN:
            _check(path, name, digests.get(name))


def check_loaded(folder: Path) -> None:
    """Check every file of an archive that a worker is about to load.

    TorchServe adds files to the folder; those are not looked at.

    Raises:
        DamagedArchive: a file differs, or there are no digests.
        FileNotFoundError: a file is absent.
    """
    for name, digest in _read(folder).items():
        _check(folder / name, name, digest)


def _read(folder: Path) -> dict[str, str]:
    try:
        digests: dict[str, str] = json.loads((folder / DIGESTS).read_text())
    except (FileNotFoundError, ValueError) as exc:
        raise DamagedArchive(
            f"it has no digests of its files ({DIGESTS}). Build it again: samserve archive"
        ) from exc
    return digests


def _check(path: Path, name: str, digest: str | None) -> None:
    if digest is None:
        raise DamagedArchive(f"{name} does not belong to it: {DIGESTS} does not have it")
    if sha256_of(path) != digest:
        raise DamagedArchive(f"{name} was changed: its SHA-256 is not the one in {DIGESTS}")
