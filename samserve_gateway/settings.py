"""The gateway's settings, from environment variables. A wrong value stops the gateway."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from samserve.model_types import MODEL_TYPES
from samserve.serving.lanes import lanes_of

from .setting_values import (
    HostNames,
    ModelTypes,
    Networks,
    Origins,
    RedisUrl,
    ServerAddress,
    Switch,
)

PREFIX = "SAMSERVE_"

ADMIN_TOKEN = PREFIX + "ADMIN_TOKEN"
"""The variable with the administrator's token. The gateway passes it to no other process."""

KEYS_FILE = PREFIX + "API_KEYS_FILE"
OPEN = PREFIX + "OPEN"

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
    model_config = ConfigDict(
        frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False
    )

    host: str = Field("127.0.0.1", description="address the gateway listens on")
    port: int = Field(8000, ge=0, le=65535, description="port the gateway listens on")
    inference_url: ServerAddress = Field(
        "http://127.0.0.1:8080", description="TorchServe's inference API"
    )
    management_url: ServerAddress = Field(
        "http://127.0.0.1:8081", description="TorchServe's management API"
    )
    key_file: Path = Field(Path("key_file.json"), description="TorchServe's token file")
    torchserve_tokens: Literal["on", "off"] = Field(
        "on", description="off: TorchServe runs without tokens, on a private network"
    )
    models: ModelTypes = Field(
        "vit_t", description="model types that must be ready, space-separated"
    )
    stand_in: str | None = Field(
        None, description="the model type, one of `models`, that answers for types not loaded"
    )
    max_body_bytes: int = Field(64 * 2**20, gt=0, description="larger bodies get 413")
    bodies_bytes: int | None = Field(
        None,
        gt=0,
        description="most bytes of all bodies together, of which one client may have half; beyond "
        "it requests get 503. The default is 256 MiB, but at least four times `max_body_bytes`",
    )
    max_connections: int = Field(
        1000, gt=0, description="most connections; further ones are answered with 503 and closed"
    )
    max_connections_per_address: int = Field(
        200, gt=0, description="most connections from one address"
    )
    jobs_directory: Path | None = Field(
        None, description="folder shared with the workers: progress and cancellation of automasks"
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file of the certificate; with it, the gateway speaks HTTPS only"
    )
    tls_key: Path | None = Field(
        None, validate_default=True, description="PEM file of the certificate's private key"
    )
    cors_origins: Origins = Field(
        "",
        description="web pages that may use the API in a browser, as https://host[:port], "
        "space-separated",
    )
    allowed_hosts: HostNames = Field(
        "",
        description="names of this server, space-separated, under which a reverse proxy on this "
        "machine offers it without API keys",
    )
    prompt_timeout_s: float = Field(120, gt=0, description="longest time for a prompt")
    automask_timeout_s: float = Field(7200, gt=0, description="longest time for an automask")
    log_level: Literal["info", "warning", "error"] = Field(
        "warning", description="info: a line for every request"
    )

    api_keys_file: Path | None = Field(
        None, description="file of API keys, made by `samserve keys`; then every client needs one"
    )
    open: Switch = Field(
        False, description="1: everybody who reaches the gateway may use it without a key; 0: not"
    )
    trusted_proxies: Networks = Field(
        "",
        description="addresses or networks of proxies whose X-Forwarded-For is believed, "
        "comma-separated",
    )
    requests_at_once: int | None = Field(
        None, ge=0, description="most requests under way of one client; 0: any number"
    )
    requests_a_minute: int | None = Field(
        None, ge=0, description="most requests a minute of one client; 0: any number"
    )
    queue_size: int = Field(256, gt=0, description="requests that wait in one lane")
    limits_redis_url: RedisUrl | None = Field(
        None,
        description="redis://…, in which several gateways count the requests of a client together",
    )

    admin_token: SecretStr | None = Field(
        None,
        description="a client that sends this token may register weights; without it none may",
    )
    weights_origins: Origins = Field(
        _DEFAULT_ORIGINS,
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

    @field_validator("tls_key")
    @classmethod
    def _check_tls(cls, value: Path | None, others: ValidationInfo) -> Path | None:
        if (value is None) != (others.data.get("tls_certificate") is None):
            raise ValueError(f"set both {PREFIX}TLS_CERTIFICATE and {PREFIX}TLS_KEY, or neither")
        return value

    @field_validator("bodies_bytes")
    @classmethod
    def _check_bodies_bytes(cls, value: int | None, others: ValidationInfo) -> int | None:
        least = 2 * others.data.get("max_body_bytes", 0)
        if value is not None and value < least:
            raise ValueError(
                f"{value} is too little: a client may have half of it, and {PREFIX}MAX_BODY_BYTES "
                f"allows a body for which {least} are needed"
            )
        return value

    @field_validator("stand_in")
    @classmethod
    def _check_stand_in(cls, value: str | None, others: ValidationInfo) -> str | None:
        if value is None or "models" not in others.data:  # `models` has a message of its own
            return value
        if value not in MODEL_TYPES:
            raise ValueError(
                f"there is no model type {value!r}; there are {', '.join(MODEL_TYPES)}"
            )
        models = others.data["models"].split()
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

    def body_budget(self) -> int:
        """Return the most bytes that all bodies may have together."""
        return self.bodies_bytes or max(256 * 2**20, 4 * self.max_body_bytes)

    def lanes(self) -> list[str]:
        """Return the lanes of `models`."""
        return list(lanes_of(self.models.split()))


def problems(error: ValidationError) -> list[str]:
    """Return a line for each wrong setting: the name of its variable, and what is wrong."""
    return [
        f"{PREFIX}{'_'.join(map(str, one['loc'])).upper()}: "
        + one["msg"].removeprefix("Value error, ")
        for one in error.errors(include_url=False, include_input=False)
    ]
