"""The `samserve:` part of a model's YAML (config/models/*.yaml), checked.

A misspelt or missing setting stops the worker at load, with the setting's name.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Precision = Literal["float32", "bfloat16", "float16"]
"""Named as PyTorch names them."""

Defaults = Literal["segment-anything", "samapi"]
"""Whose behaviour a body gets that leaves `output_type` or `include_image_edge` open."""


def usable_cores(cpu_max: Path = Path("/sys/fs/cgroup/cpu.max")) -> int:
    """Cores this process may run on, and may use up; macOS does not tell, so there it is all.

    Args:
        cpu_max: where a container's limit stands, as "<microseconds> <of microseconds>" or "max
            <…>": more threads than that would only be throttled together.
    """
    cores = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):  # no container; or "max": no limit
        quota, period = map(int, cpu_max.read_text().split())
        cores = min(cores, max(1, quota // period))
    return cores


def memory_folder() -> Path | None:
    """Where files are kept in memory, on a system that has such a folder."""
    folder = Path("/dev/shm")
    return folder if folder.is_dir() else None


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


class CacheSettings(_Settings):
    """How many embeddings are kept, so that a known image is not encoded again."""

    enabled: bool
    memory_bytes: int = Field(ge=0)
    machine_bytes: int = Field(ge=0)
    directory: Path | None
    redis_url: str | None = None  # by the environment only: an archive is no place for passwords

    def resolve_directory(self) -> Path:
        """The setting; or, where it is null, this user's own folder in shared memory."""
        if self.directory is not None:
            return self.directory
        parent = memory_folder() or Path(tempfile.gettempdir())
        return parent / f"samserve-{os.getuid()}"


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
