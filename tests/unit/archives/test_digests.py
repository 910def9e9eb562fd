"""A file that is not the one that was put into an archive is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from samserve.archives.digests import (
    DIGESTS,
    DamagedArchive,
    check_loaded,
    check_unpacked,
    digests_of,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An unpacked archive."""
    files = {"sam_handler.py": "pass", "samserve/model.py": "x = 1", "vit_t.pt": "weights"}
    for name, content in {**files, "MAR-INF/MANIFEST.json": "{}"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    (tmp_path / DIGESTS).write_text(digests_of({name: tmp_path / name for name in files}, {}))
    return tmp_path


def test_unchanged_files(folder: Path) -> None:
    check_unpacked(folder)
    check_loaded(folder)
    (folder / "MAR-INF" / "MANIFEST.json").write_text('{"createdOn": "now"}')
    check_unpacked(folder)
    (folder / "log_of_torchserve").touch()
    check_loaded(folder)


@pytest.mark.parametrize("check", [check_unpacked, check_loaded])
@pytest.mark.parametrize("name", ["sam_handler.py", "samserve/model.py", "vit_t.pt"])
@pytest.mark.parametrize("content", ["", "other", "weight"])
def test_a_changed_file_is_named(
    folder: Path, check: Callable[[Path], None], name: str, content: str
) -> None:
    (folder / name).write_text(content)
    with pytest.raises(DamagedArchive, match=f"^{re.escape(name)} was changed"):
        check(folder)


@pytest.mark.parametrize("name", ["extra.py", "samserve/extra.py", "MAR-INF/extra.py"])
def test_a_file_too_many_is_named(folder: Path, name: str) -> None:
    (folder / name).touch()
    with pytest.raises(DamagedArchive, match=f"^{re.escape(name)} does not belong to it"):
        check_unpacked(folder)


def test_a_file_that_is_absent(folder: Path) -> None:
    (folder / "vit_t.pt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vit_t\.pt"):
        check_loaded(folder)


@pytest.mark.parametrize("content", [None, "", "{"])
@pytest.mark.parametrize("check", [check_unpacked, check_loaded])
def test_an_archive_without_digests(
    folder: Path, check: Callable[[Path], None], content: str | None
) -> None:
    if content is None:
        (folder / DIGESTS).unlink()
    else:
        (folder / DIGESTS).write_text(content)
    with pytest.raises(DamagedArchive, match="no digests of its files"):
        check(folder)


def test_known_digests_are_not_computed_again(tmp_path: Path) -> None:
    large = tmp_path / "large.pt"
    assert '"large.pt": "abc"' in digests_of({"large.pt": large}, {large: "abc"})
