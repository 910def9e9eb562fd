"""The settings of a model type: the defaults, what its own file overrides, and their errors."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from samserve import places
from samserve.archives.settings import checked_settings, settings_file, settings_of
from samserve.model_types import MODEL_TYPES
from tests.support.paths import ROOT


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of config/models, which the product reads in place of the repository's."""
    shutil.copytree(ROOT / "config" / "models", tmp_path / "models")
    monkeypatch.setattr(places, "config_folder", lambda: tmp_path)
    return tmp_path / "models"


def test_each_type_has_the_defaults_and_its_name() -> None:
    """Only vit_t and SAM 2's types have settings of their own."""
    defaults = yaml.safe_load((ROOT / "config" / "models" / "defaults.yaml").read_text())
    step_s = {"vit_t": 60, "sam2_t": 60, "sam2_s": 60, "sam2_bp": 120, "sam2_l": 300}
    for model_type in MODEL_TYPES:
        expected = {**defaults["samserve"], "model_type": model_type}
        if model_type in step_s:
            expected |= {"cpu_runtime": "openvino", "step_s": step_s[model_type]}
        if model_type.startswith("sam2"):
            cache = {**expected["embedding_cache"], "memory_bytes": 384 * 2**20}
            expected["embedding_cache"] = cache
        assert settings_of(model_type) == {**defaults, "samserve": expected}


def test_a_file_of_a_type_overrides_what_it_names(folder: Path) -> None:
    text = "responseTimeout: 60\nsamserve: {limits: {max_points: 7, max_automask_s: 50}}\n"
    (folder / "vit_h.yaml").write_text(text)
    settings = settings_of("vit_h")
    assert settings["responseTimeout"] == 60
    assert settings["samserve"]["limits"]["max_points"] == 7
    assert settings["samserve"]["limits"]["max_body_bytes"] == 64 * 2**20
    assert checked_settings("vit_h").limits.max_points == 7
    assert checked_settings("vit_l").limits.max_points == 262144


def test_the_file_of_the_archive_changes_only_with_the_settings(
    folder: Path, tmp_path: Path
) -> None:
    path = settings_file("vit_b", tmp_path / "weights")
    assert yaml.safe_load(path.read_text()) == settings_of("vit_b")
    before = path.stat()
    assert settings_file("vit_b", tmp_path / "weights").stat().st_mtime_ns == before.st_mtime_ns
    (folder / "vit_b.yaml").write_text("startupTimeout: 9\n")
    settings_file("vit_b", tmp_path / "weights")
    assert yaml.safe_load(path.read_text())["startupTimeout"] == 9
    assert [p.name for p in path.parent.iterdir()] == ["vit_b.yaml"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("samserve: {limits: {max_pionts: 1}}", "max_pionts"),
        ("samserve: {promt: {threads: 1}}", "promt"),
        ("samserve: {precision: float8}", "precision"),
        ("samserve: [1]", "vit_t"),
        ("- 1", "vit_t.yaml must hold settings"),
        ("a: [", "vit_t.yaml"),
    ],
)
def test_a_wrong_setting_is_named_before_anything_is_built(
    folder: Path, text: str, message: str
) -> None:
    (folder / "vit_t.yaml").write_text(text)
    with pytest.raises(SystemExit, match=message):
        checked_settings("vit_t")
