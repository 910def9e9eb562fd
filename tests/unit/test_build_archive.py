"""The archive holds what the worker needs, and one that does not is built again."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from scripts.build_archive import (
    MANIFEST,
    build,
    checked_settings,
    holds,
    members_of,
    weights_of,
)
from tests.conftest import ROOT


@pytest.fixture
def weights_dir(tmp_path: Path) -> Path:
    """Weights that are none: the archive does not look inside."""
    folder = tmp_path / "weights"
    folder.mkdir()
    (folder / "vit_t.pt").write_bytes(bytes(range(256)) * 1000)
    (folder / "vit_t.json").write_text("{}")
    return folder


@pytest.fixture
def archive(tmp_path: Path, weights_dir: Path) -> Path:
    path = tmp_path / "store" / "vit_t.mar"
    build(path, "vit_t", members_of("vit_t", weights_dir / "vit_t.pt"))
    return path


def test_what_an_archive_holds(archive: Path) -> None:
    with zipfile.ZipFile(archive) as mar:
        names = {name for name in mar.namelist() if not name.endswith("/")}
        manifest = json.loads(mar.read(MANIFEST))["model"]
    library = {f"samserve/{path.name}" for path in (ROOT / "handlers/samserve").glob("*.py")}
    rest = {"sam_handler.py", "vit_t.pt", "vit_t.yaml", "weights.json", MANIFEST}
    assert names == library | rest
    assert manifest["handler"] == "sam_handler.py"
    assert manifest["serializedFile"] == "vit_t.pt"
    assert manifest["configFile"] == "vit_t.yaml"
    assert [path.name for path in archive.parent.iterdir()] == ["vit_t.mar"]


def test_registered_weights_get_an_archive_each(tmp_path: Path, weights_dir: Path) -> None:
    registered = weights_dir / "registered"
    registered.mkdir()
    for name in ("vit_t.nuclei.pt", "vit_t.nuclei.json", "vit_b.nuclei.pt", "vit_t.pt", "x.pt"):
        (registered / name).write_text(name)
    own, nuclei = weights_of("vit_t", weights_dir)
    assert (own, nuclei) == (weights_dir / "vit_t.pt", registered / "vit_t.nuclei.pt")
    archive = tmp_path / "store" / "vit_t.nuclei.mar"
    build(archive, "vit_t", members_of("vit_t", nuclei))
    with zipfile.ZipFile(archive) as mar:
        assert json.loads(mar.read(MANIFEST))["model"]["modelName"] == "vit_t.nuclei"
        assert mar.read("vit_t.pt") == b"vit_t.nuclei.pt"
        assert mar.read("weights.json") == b"vit_t.nuclei.json"
    assert [path.name for path in archive.parent.iterdir()] == ["vit_t.nuclei.mar"]


def test_it_is_up_to_date_until_a_source_changes(archive: Path, weights_dir: Path) -> None:
    members = members_of("vit_t", weights_dir / "vit_t.pt")
    assert holds(archive, members)
    (weights_dir / "vit_t.json").write_text('{"source": "another"}')
    assert not holds(archive, members)


@pytest.mark.parametrize("damage", ["truncated", "a byte changed", "empty", "gone"])
def test_a_damaged_archive_is_not_valid(archive: Path, weights_dir: Path, damage: str) -> None:
    content = bytearray(archive.read_bytes())
    if damage == "truncated":
        archive.write_bytes(content[: len(content) // 2])
    elif damage == "a byte changed":
        content[len(content) // 3] ^= 0xFF
        archive.write_bytes(content)
    elif damage == "empty":
        archive.write_bytes(b"")
    else:
        archive.unlink()
    assert not holds(archive, members_of("vit_t", weights_dir / "vit_t.pt"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("max_points: 262144", "max_points"),
        ("model_type: vit_t", "model_type is vit_h"),
        ("  prompt:", "prompt"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_built(
    tmp_path: Path, wrong: str, said: str
) -> None:
    config = (ROOT / "config" / "models" / "vit_t.yaml").read_text()
    path = tmp_path / "vit_t.yaml"
    right = {"max_points: 262144": "max_pionts: 1", "model_type: vit_t": "model_type: vit_h"}
    path.write_text(config.replace(wrong, right.get(wrong, "  promt:")))
    with pytest.raises(SystemExit, match=said):
        checked_settings("vit_t", path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "scripts.build_archive", "vit_t"]
    command += ["--weights-dir", str(tmp_path), "--model-store", str(tmp_path)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told.returncode != 0
    assert str(tmp_path / "vit_t.pt") in told.stderr
    assert not list(tmp_path.iterdir())
