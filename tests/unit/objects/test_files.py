"""A file is written completely or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samserve.objects.files import remove_left_parts, write, written


def test_the_path_has_the_old_content_until_the_new_one_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    write(path, b"old")
    with written(path) as part:
        part.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["b.json"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_no_part(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "b.json"

    def write_half() -> None:
        with written(path) as part:
            part.write_bytes(b"half")
            raise error

    with pytest.raises(error):
        write_half()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys; from samserve.objects.files import written\n"
        "with written(sys.argv[1]) as part: part.write_bytes(b'half'); os.kill(os.getpid(), 9)"
    )
    for name in ("b.json", "c.labels.png", "d"):
        subprocess.run([sys.executable, "-c", code, tmp_path / name], check=False)
    assert len(os.listdir(tmp_path)) == 3
    kept = [".hidden", ".b.part", f".e.{os.getpid()}.part.png", "f.12.part.png"]
    for name in kept:
        (tmp_path / name).touch()
    remove_left_parts(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_left_parts(tmp_path / "missing")
