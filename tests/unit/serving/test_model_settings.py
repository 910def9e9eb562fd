"""The archive's own YAML loads, and a mistake in it is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from samserve.archives.settings import settings_of
from samserve.machine import usable_cores
from samserve.model_types import MODEL_TYPES
from samserve.serving.model_settings import ModelSettings


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_every_type_has_settings(model_type: str) -> None:
    config = settings_of(model_type)
    settings = ModelSettings.from_yaml(config, {})
    assert settings.model_type == model_type
    assert settings.limits.max_automask_s < config["responseTimeout"]
    assert settings.prompt.gpu_memory + settings.automask.gpu_memory < 1


def test_openvino_takes_full_precision_only(config: dict[str, Any]) -> None:
    config["samserve"] |= {"cpu_runtime": "openvino", "precision": "bfloat16"}
    with pytest.raises(ValidationError, match="precision: bfloat16 needs cpu_runtime: pytorch"):
        ModelSettings.from_yaml(config, {})


@pytest.mark.parametrize("cpu_runtime", ["openvino", "pytorch"])
def test_the_precision_is_the_devices_unless_it_is_set(
    config: dict[str, Any], cpu_runtime: str
) -> None:
    config["samserve"] |= {"cpu_runtime": cpu_runtime, "precision": "auto"}
    chosen = ModelSettings.from_yaml(config, {}).precision_on
    assert [chosen(device) for device in ("cuda", "mps", "cpu")] == [
        "float16",
        "float32",
        "float32",
    ]
    config["samserve"] |= {"cpu_runtime": "pytorch", "precision": "bfloat16"}
    chosen = ModelSettings.from_yaml(config, {}).precision_on
    assert {chosen(device) for device in ("cuda", "mps", "cpu")} == {"bfloat16"}


@pytest.fixture
def config() -> dict[str, Any]:
    return settings_of("vit_t")


def test_the_shipped_settings(config: dict[str, Any]) -> None:
    settings = ModelSettings.from_yaml(config, {})
    assert settings.model_type == "vit_t"
    assert settings.prompt.resolve_threads() == usable_cores() > 0
    assert settings.automask.nice > settings.prompt.nice


def test_the_starter_knows_the_threads_better(config: dict[str, Any]) -> None:
    environ = {"SAMSERVE_PROMPT_THREADS": "3", "SAMSERVE_AUTOMASK_THREADS": "1"}
    settings = ModelSettings.from_yaml(config, environ)
    assert settings.prompt.resolve_threads() == 3
    assert settings.automask.resolve_threads() == 1


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [("limits", "max_points", 0), ("limits", "max_pionts", 5), ("prompt", "threads", "all")],
)
def test_a_wrong_setting_is_named(
    config: dict[str, Any], section: str, name: str, value: object
) -> None:
    config["samserve"][section][name] = value
    with pytest.raises(ValidationError, match=name):
        ModelSettings.from_yaml(config, {})


@pytest.mark.parametrize(
    ("environ", "defaults"),
    [
        ({}, "segment-anything"),
        ({"SAMSERVE_DEFAULTS": ""}, "segment-anything"),
        ({"SAMSERVE_DEFAULTS": "segment-anything"}, "segment-anything"),
        ({"SAMSERVE_DEFAULTS": "samapi"}, "samapi"),
    ],
)
def test_whose_defaults(config: dict[str, Any], environ: dict[str, str], defaults: str) -> None:
    assert ModelSettings.from_yaml(config, environ).defaults == defaults


@pytest.mark.parametrize("wrong", ["SAM", "samapi ", "none"])
def test_wrong_defaults_stop_the_worker_by_name(config: dict[str, Any], wrong: str) -> None:
    with pytest.raises(ValueError, match=r"SAMSERVE_DEFAULTS is .* segment-anything or samapi"):
        ModelSettings.from_yaml(config, {"SAMSERVE_DEFAULTS": wrong})


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("150000 100000", 1), ("50000 100000", 1), ("200000 100000", 2), ("max 100000", None)],
)
def test_a_containers_limit_counts(tmp_path: Path, limit: str, cores: int | None) -> None:
    cpu_max = tmp_path / "cpu.max"
    cpu_max.write_text(limit)
    all_of_them = usable_cores(tmp_path / "missing")
    assert usable_cores(cpu_max) == min(cores or all_of_them, all_of_them)
