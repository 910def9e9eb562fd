"""This module makes the settings of a model type from the files in `config/models`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import yaml

from samserve import places
from samserve.serving.model_settings import ModelSettings


def settings_of(model_type: str) -> dict[str, Any]:
    """Return a model type's settings: `config/models/defaults.yaml`, overridden by `<type>.yaml`.

    Raises:
        SystemExit: a file is not YAML, or not a mapping; the message names it.
    """
    folder = places.config_folder() / "models"
    overrides = folder / f"{model_type}.yaml"
    settings = _read_settings(folder / "defaults.yaml")
    if overrides.is_file():
        settings = _merged(settings, _read_settings(overrides))
    return _merged(settings, {"samserve": {"model_type": model_type}})


def settings_file(model_type: str, folder: Path) -> Path:
    """Write a model type's settings to a file in this folder, for the archive."""
    path = folder / f"{model_type}.yaml"
    text = "# Made from config/models.\n" + yaml.safe_dump(settings_of(model_type), sort_keys=False)
    if not path.is_file() or path.read_text() != text:
        folder.mkdir(parents=True, exist_ok=True)
        # Written beside and renamed: several archives of a type may be built at the same time.
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        draft.replace(path)
    return path


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = yaml.safe_load(path.read_text())
    except yaml.YAMLError as exc:
        sys.exit(f"{path}: {exc}")
    if not isinstance(settings, dict):
        sys.exit(f"{path} must hold settings by name")
    return settings


def _merged(defaults: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    merged = dict(defaults)
    for name, value in overrides.items():
        default = merged.get(name)
        if isinstance(value, dict) and isinstance(default, dict):
            merged[name] = _merged(default, value)
        else:
            merged[name] = value
    return merged


def checked_settings(model_type: str) -> ModelSettings:
    """Return the checked settings of a model type.

    Exit with an error that names a wrong setting. Otherwise only the worker would fail to start.
    """
    try:
        return ModelSettings.from_yaml(settings_of(model_type), {})
    except (ValueError, KeyError, TypeError) as exc:
        sys.exit(f"{places.config_folder() / 'models'}: the settings of {model_type}: {exc}")
