"""The gateway's settings, from environment variables. A wrong value stops the gateway."""

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
"""The variable with the administrator's token. The gateway passes it to no other process."""

_ORIGIN = r"https?://[^\s/?#@]+"

# The hosts of known weights, and the hosts to which they redirect a download. GitHub's files and
# releases are on its other three hosts. The hosts of the QuPath extension's catalogue and of
# micro-sam's models redirect to no other host.
_DEFAULT_ORIGINS = (
    "https://github.com https://raw.githubusercontent.com https://objects.githubusercontent.com "
    "https://release-assets.githubusercontent.com https://dl.fbaipublicfiles.com "
    "https://zenodo.org https://owncloud.gwdg.de https://uk1s3.embassy.ebi.ac.uk"
)


class Settings(BaseModel):
    """Each field is read from `SAMSERVE_<FIELD>`. If that is empty or absent, the default holds."""

    # hide_input_in_errors: errors are logged, and the token must not be in a log.
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="address the gateway listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the gateway listens on")
    inference_url: str = Field("http://127.0.0.1:8080", description="TorchServe's inference API")
    management_url: str = Field("http://127.0.0.1:8081", description="TorchServe's management API")
    key_file: Path = Field(Path("key_file.json"), description="TorchServe's token file")
    torchserve_tokens: Literal["on", "off"] = Field(
        "on", description="off: TorchServe runs without tokens, on a private network"
    )
    models: str = Field("vit_t", description="model types that must be ready, space-separated")
    stand_in: str | None = Field(
        None, description="the model type, one of `models`, that answers for types not loaded"
    )
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="larger bodies get 413")
    jobs_directory: Path | None = Field(
        None, description="folder shared with the workers: progress and cancellation of automasks"
    )
    prompt_timeout_s: float = Field(120, gt=0, description="longest time for a prompt")
    automask_timeout_s: float = Field(7200, gt=0, description="longest time for an automask")
    log_level: Literal["info", "warning", "error"] = Field(
        "warning", description="info: a line for every request"
    )

    admin_token: SecretStr | None = Field(
        None,
        description="a client that sends this token may register weights; without it none may",
    )
    weights_origins: str = Field(
        _DEFAULT_ORIGINS,
        pattern=rf"^(\s*{_ORIGIN}(\s|$))*$",
        description="addresses from which weights may be downloaded, as https://host[:port], "
        "space-separated; a redirect must lead to one of them, too",
    )
    weights_max_bytes: int = Field(4 * 2**30, gt=0, description="larger weights are refused")
    weights_timeout_s: float = Field(3600, gt=0, description="longest time of a download")
    weights_min_rate: float = Field(
        10_000, ge=0, description="bytes a second of a download, at least, over a minute"
    )
    max_weights: int = Field(8, ge=0, description="most registered weights, of all model types")
    weights_dir: Path = Field(Path("weights"), description="folder of registered weights")
    model_store: Path = Field(Path("model_store"), description="folder of the archives")
    models_dir: Path = Field(
        Path("models"), description="folder of unpacked archives, for TorchServe"
    )

    @field_validator("admin_token")
    @classmethod
    def _check_admin_token(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None and len(value) < 16:
            raise ValueError(f"the token has {len(value)} characters; it needs 16 or more")
        return value

    @field_validator("stand_in")
    @classmethod
    def _check_stand_in(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is None:
            return None
        if value not in MODEL_TYPES:
            raise ValueError(
                f"there is no model type {value!r}; there are {', '.join(MODEL_TYPES)}"
            )
        models = others.data.get("models", "").split()
        if value not in models:
            raise ValueError(
                f"{value} is not among the models to be loaded, {' '.join(models)} ({PREFIX}MODELS)"
            )
        return value

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        """Return the settings of these variables.

        Raises:
            pydantic.ValidationError: a value is wrong. The error names the variable's field.
        """
        names = {name: environ.get(PREFIX + name.upper()) for name in cls.model_fields}
        return cls.model_validate({name: value for name, value in names.items() if value})

    def lanes(self) -> list[str]:
        """Return the lanes of `models`."""
        return list(lanes_of(self.models.split()))
