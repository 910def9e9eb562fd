"""The gateway's settings, all from the environment; a value that doesn't fit stops it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from samserve.model_types import MODEL_TYPES
from samserve.serving.lanes import lanes_of

PREFIX = "SAMSERVE_"

ADMIN_TOKEN = PREFIX + "ADMIN_TOKEN"
"""Where the administrator's token is read from; no other process is given it."""

_ORIGIN = r"https?://[^\s/?#@]+"

# With where each sends a download on to: GitHub's files and releases lie on its other three
# hosts. The hosts of the QuPath extension's catalogue and of micro-sam's models serve their files
# themselves, and redirect within themselves at most.
_DEFAULT_ORIGINS = (
    "https://github.com https://raw.githubusercontent.com https://objects.githubusercontent.com "
    "https://release-assets.githubusercontent.com https://dl.fbaipublicfiles.com "
    "https://zenodo.org https://owncloud.gwdg.de https://uk1s3.embassy.ebi.ac.uk"
)


class Settings(BaseModel):
    """Each field is read from `SAMSERVE_<FIELD>`; empty or absent means the default."""

    # An error goes to a log, where the token must not be.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="address the gateway listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the gateway listens on")
    inference_url: str = Field("http://127.0.0.1:8080", description="TorchServe's inference API")
    management_url: str = Field("http://127.0.0.1:8081", description="TorchServe's management API")
    key_file: Path = Field(Path("key_file.json"), description="TorchServe's token file")
    torchserve_tokens: Literal["on", "off"] = Field(
        "on", description="off: TorchServe wants none, being on a network of its own"
    )
    models: str = Field("vit_t", description="model types that must be ready, space-separated")
    stand_in: str | None = Field(
        None, description="the model type, one of `models`, that answers for those not loaded"
    )
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="larger bodies get 413")
    jobs_directory: Path | None = Field(
        None, description="folder shared with the workers: automasks' progress, cancellations"
    )
    prompt_timeout_s: float = Field(120, gt=0, description="longest answer to a prompt")
    automask_timeout_s: float = Field(7200, gt=0, description="longest automask")
    log_level: Literal["info", "warning", "error"] = Field(
        "warning", description="info: a line for every request"
    )

    admin_token: SecretStr | None = Field(
        None, min_length=16, description="who sends it may register weights; without it nobody may"
    )
    weights_origins: str = Field(
        _DEFAULT_ORIGINS,
        pattern=rf"^(\s*{_ORIGIN}(\s|$))*$",
        description="what weights may be downloaded from, as https://host[:port], space-separated: "
        "every address that a download is sent on to must be among them",
    )
    weights_max_bytes: int = Field(4 * 2**30, gt=0, description="larger weights are refused")
    weights_dir: Path = Field(Path("weights"), description="registered weights are put there")
    model_store: Path = Field(Path("model_store"), description="their archives")
    models_dir: Path = Field(Path("models"), description="the same unpacked, for TorchServe")

    @field_validator("stand_in")
    @classmethod
    def _check_stand_in(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is None:
            return None
        if value not in MODEL_TYPES:
            raise ValueError(
                f"{PREFIX}STAND_IN is {value!r}, which is no model type; "
                f"there are {', '.join(MODEL_TYPES)}"
            )
        models = others.data.get("models", "").split()
        if value not in models:
            raise ValueError(
                f"{PREFIX}STAND_IN is {value}, which is not among the models to be loaded, "
                f"{' '.join(models)} ({PREFIX}MODELS)"
            )
        return value

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Raises pydantic.ValidationError, naming the variable's field."""
        names = {name: environ.get(PREFIX + name.upper()) for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in names.items() if value})

    def lanes(self) -> list[str]:
        """The lanes of `models`."""
        return list(lanes_of(self.models.split()))
