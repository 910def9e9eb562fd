"""The gateway's settings, all from the environment; a value that doesn't fit stops it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from samserve.settings import AUTOMASK_SUFFIX

PREFIX = "SAMSERVE_"


class Settings(BaseModel):
    """Each field is read from `SAMSERVE_<FIELD>`; empty or absent means the default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address the gateway listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the gateway listens on")
    inference_url: str = Field("http://127.0.0.1:8080", description="TorchServe's inference API")
    management_url: str = Field("http://127.0.0.1:8081", description="TorchServe's management API")
    key_file: Path = Field(Path("key_file.json"), description="TorchServe's token file")
    torchserve_tokens: Literal["on", "off"] = Field(
        "on", description="off: TorchServe wants none, being on a network of its own"
    )
    models: str = Field("vit_t", description="model types that must be ready, space-separated")
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="larger bodies get 413")
    runs_directory: Path | None = Field(
        None, description="folder shared with the workers: automasks' progress, cancellations"
    )
    prompt_timeout_s: float = Field(120, gt=0, description="longest answer to a prompt")
    automask_timeout_s: float = Field(1200, gt=0, description="longest automask")
    log_level: Literal["info", "warning", "error"] = Field(
        "warning", description="info: a line for every request"
    )

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Raises pydantic.ValidationError, naming the variable's field."""
        names = {name: environ.get(PREFIX + name.upper()) for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in names.items() if value})

    def lanes(self) -> list[str]:
        """The lanes of `models`."""
        return list(lanes_of(self.models))


def automask_lane(model_type: str) -> str:
    """The lane that answers automask for a model type."""
    return model_type + AUTOMASK_SUFFIX


def lanes_of(models: str) -> dict[str, str]:
    """Space-separated model types -> each lane and its type, prompts before automask."""
    return {lane: model for model in models.split() for lane in (model, automask_lane(model))}
