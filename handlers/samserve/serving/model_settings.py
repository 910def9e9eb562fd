"""This module reads and checks the part `samserve:` of a model's YAML (config/models/*.yaml).

A misspelt or missing setting stops the worker at its start, with the setting's name.
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
"""The behaviour for a body without `output_type`, `include_image_edge` or `pred_iou_thresh`."""


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Settings):
    """The limits of one request."""

    max_body_bytes: int = Field(gt=0)
    max_image_pixels: int = Field(gt=0)
    max_points: int = Field(gt=0)
    max_automask_s: float = Field(gt=0)
    max_decode_s: float = Field(gt=0)
    max_mask_pixels: int = Field(gt=0)
    max_vertices: int = Field(gt=0)
    max_answer_bytes: int = Field(gt=0)


class LightWork(_Settings):
    """The work that the prompt lane takes. What is heavier is for the automask lane."""

    max_image_pixels: int = Field(gt=0)
    decode_s: float = Field(gt=0)
    batch_decode_s: float = Field(gt=0)
    masks_s: float = Field(gt=0)
    batch_masks_s: float = Field(gt=0)


class LaneSettings(_Settings):
    """The share of the machine that a worker of one lane may use."""

    threads: int = Field(ge=0)
    nice: int = Field(ge=0, le=19)
    gpu_memory: float = Field(gt=0, le=1)

    def resolve_threads(self) -> int:
        """Return the number of threads: the setting, or all usable cores if it is 0."""
        return self.threads or usable_cores()


class ModelSettings(_Settings):
    """The settings of one model type, for both of its lanes."""

    model_type: str
    precision: Precision | Literal["auto"]
    cpu_runtime: Literal["openvino", "pytorch"]
    gpu_compile: bool
    step_s: float = Field(gt=0)
    defaults: Defaults = "segment-anything"  # set by the environment only: SAMSERVE_DEFAULTS
    limits: Limits
    light: LightWork
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
        """Return the precision: the setting, or the device's default if the setting is `auto`.

        A GPU gets float16: it is as fast as bfloat16 and rounds eight times finer. A CPU gets
        float32: bfloat16, which some CPUs compute faster, moves too many pixels of a mask.

        Args:
            device_type: PyTorch's name of the device type, as `torch.device.type`.
        """
        if self.precision != "auto":
            return self.precision
        return "float16" if device_type == "cuda" else "float32"

    @classmethod
    def from_yaml(
        cls, config: Mapping[str, Any], environ: Mapping[str, str] = os.environ
    ) -> ModelSettings:
        """Read the settings from the parsed YAML and from environment variables.

        `SAMSERVE_PROMPT_THREADS`, `SAMSERVE_AUTOMASK_THREADS` and `SAMSERVE_CACHE_DIRECTORY`
        override the YAML: only the launcher knows how many workers share the cores, and which
        folder it will remove at the end. `SAMSERVE_REDIS_URL` is the Redis that machines share.
        `SAMSERVE_DEFAULTS` chooses the defaults of requests.

        Raises:
            ValueError: the message names the wrong setting (as pydantic.ValidationError) or
                variable.
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
