"""The `samserve:` part of a model's YAML (config/models/*.yaml), checked.

A misspelt or missing setting stops the worker at load, with the setting's name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

from samserve.embeddings.settings import CacheSettings
from samserve.machine import usable_cores
from samserve.model_types import Precision

Defaults = Literal["segment-anything", "samapi"]
"""Whose behaviour a body gets that leaves `output_type` or `include_image_edge` open."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Settings):
    """What one request may ask for at most."""

    max_body_bytes: int = Field(gt=0)
    max_image_pixels: int = Field(gt=0)
    max_points: int = Field(gt=0)
    max_automask_s: float = Field(gt=0)


class LaneSettings(_Settings):
    """How the workers of one lane share the machine."""

    threads: int = Field(ge=0)
    nice: int = Field(ge=0, le=19)
    gpu_memory: float = Field(gt=0, le=1)

    def resolve_threads(self) -> int:
        """The setting, or all cores this process may use where it is 0."""
        return self.threads or usable_cores()


class ModelSettings(_Settings):
    """One model type's settings, for both of its lanes."""

    model_type: str
    precision: Precision | Literal["auto"]
    cpu_runtime: Literal["openvino", "pytorch"]
    gpu_compile: bool
    defaults: Defaults = "segment-anything"  # by the environment only: SAMSERVE_DEFAULTS
    limits: Limits
    embedding_cache: CacheSettings
    prompt: LaneSettings
    automask: LaneSettings

    @model_validator(mode="after")
    def _openvino_is_exact(self) -> ModelSettings:
        if self.cpu_runtime == "openvino" and self.precision not in ("float32", "auto"):
            raise ValueError(
                f"precision: {self.precision} needs cpu_runtime: pytorch; OpenVINO runs float32"
            )
        return self

    def precision_on(self, device_type: str) -> Precision:
        """The setting, or the device's where that is `auto`.

        Of the two halves a GPU gets the one that rounds eight times finer and is as fast. No CPU
        gets one: where it would be faster, bfloat16 moves more of a mask than anybody asked for.

        Args:
            device_type: PyTorch's name of it, as `torch.device.type`.
        """
        if self.precision != "auto":
            return self.precision
        return "float16" if device_type == "cuda" else "float32"

    @classmethod
    def from_yaml(
        cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ
    ) -> ModelSettings:
        """From the parsed YAML.

        `SAMSERVE_PROMPT_THREADS`, `SAMSERVE_AUTOMASK_THREADS` and `SAMSERVE_CACHE_DIRECTORY`
        win over it, since only who starts the server knows how many workers share the cores,
        and where there is a folder that he will remove. `SAMSERVE_REDIS_URL` names what the
        machines share. `SAMSERVE_DEFAULTS` says whose defaults bodies have.

        Raises:
            ValueError: names the wrong setting (as pydantic.ValidationError) or variable.
        """
        settings = dict(config["samserve"])
        for lane in ("prompt", "automask"):
            threads = environ.get(f"SAMSERVE_{lane.upper()}_THREADS")
            if threads is not None:
                settings[lane] = {**settings[lane], "threads": threads}
        directory = environ.get("SAMSERVE_CACHE_DIRECTORY")
        if directory is not None:
            settings["embedding_cache"] = {**settings["embedding_cache"], "directory": directory}
        redis_url = environ.get("SAMSERVE_REDIS_URL")
        if redis_url:
            settings["embedding_cache"] = {**settings["embedding_cache"], "redis_url": redis_url}
        defaults = environ.get("SAMSERVE_DEFAULTS")
        if defaults:
            known = get_args(Defaults)
            if defaults not in known:
                raise ValueError(
                    f"SAMSERVE_DEFAULTS is {defaults!r}; it must be {' or '.join(known)}"
                )
            settings["defaults"] = defaults
        return cls.model_validate(settings)
