"""The files that the gateway sends are what the page's sources give."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page_sources import BUILT, SOURCES, copy_with_packages, run

pytestmark = pytest.mark.needs("npm")

MAX_MODULE_LINES = 300


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_sources_have_no_type_errors_and_give_the_committed_files(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    sources = copy_with_packages(tmp_path_factory)
    run("npm", "run", "check", cwd=sources)
    run("node", "build.mjs", str(tmp_path / "built"), cwd=sources)
    assert contents(tmp_path / "built") == contents(BUILT), "run `make page` and commit its files"


@pytest.mark.parametrize("path", sorted(SOURCES.glob("src/*")), ids=lambda path: path.name)
def test_a_module_of_the_page_is_short(path: Path) -> None:
    assert path.read_text().count("\n") <= MAX_MODULE_LINES
