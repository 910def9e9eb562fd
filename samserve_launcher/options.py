"""The options of a server: command line flags, and environment variables of the same names."""

from __future__ import annotations

import argparse
import os
import socket
from dataclasses import dataclass, field, fields
from pathlib import Path

from samserve import places
from samserve.machine import memory_folder
from samserve.model_types import MODEL_TYPES
from samserve.serving.lanes import is_registered, lanes_of

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True)
class Options:
    """The options of one server.

    Each field is a flag `--its-name` and an environment variable `SAMSERVE_ITS_NAME`. The flag
    wins.
    """

    host: str = LOOPBACK
    port: int = 8000
    models: str = "vit_t"
    prompt_workers: int | None = None
    automask_workers: int | None = None
    inference_port: int = 8080
    management_port: int = 8081
    metrics_port: int = 8082
    model_store: Path = field(default_factory=places.model_store_folder)
    weights_dir: Path = field(default_factory=places.weights_folder)
    run_root: Path = field(default_factory=places.run_folder)
    tls_certificate: Path | None = None
    tls_key: Path | None = None

    @property
    def url(self) -> str:
        """The gateway's URL for a client on this machine."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)
        scheme = "http" if self.tls_certificate is None else "https"
        return (
            f"{scheme}://[{host}]:{self.port}" if ":" in host else f"{scheme}://{host}:{self.port}"
        )

    @property
    def inference_url(self) -> str:
        return f"http://{LOOPBACK}:{self.inference_port}"

    @property
    def management_url(self) -> str:
        return f"http://{LOOPBACK}:{self.management_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{LOOPBACK}:{self.metrics_port}"

    @property
    def run_dir(self) -> Path:
        """The run folder: this server's files while it runs."""
        return self.run_root / str(self.port)

    @property
    def models_dir(self) -> Path:
        """The folder into which its archives are unpacked."""
        return self.run_dir / "models"

    @property
    def cache_dir(self) -> Path:
        """The folder in which its workers share embeddings: in /dev/shm if the system has it."""
        memory = memory_folder()
        name = f"samserve-{os.getuid()}-{self.port}"
        return memory / name if memory else self.run_dir / "embeddings"

    @property
    def jobs_dir(self) -> Path:
        """The folder in which gateway and workers exchange the progress of automask jobs."""
        return self.run_dir / "jobs"

    @property
    def pulse_dir(self) -> Path:
        """The folder of the files that its workers touch once a second."""
        return self.run_dir / "pulses"

    @property
    def key_file(self) -> Path:
        """The file of TorchServe's tokens."""
        return self.run_dir / "key_file.json"

    def model_types(self) -> list[str]:
        return self.models.split()

    def families(self) -> list[str]:
        """Return what to load: each model type, followed by its registered weights."""
        archives = sorted(path.stem for path in self.model_store.glob("*.mar"))
        return [
            family
            for model in self.model_types()
            for family in (model, *(name for name in archives if is_registered(name, model)))
        ]

    def lanes(self) -> dict[str, str]:
        """Return each lane to load, with its family, which is the name of its archive."""
        return lanes_of(self.families())

    def ports(self) -> dict[str, tuple[str, int]]:
        """Return every port that the server opens: the option that sets it -> (address, port)."""
        torchserves = [f.name for f in fields(self) if f.name.endswith("_port")]
        return {
            "port": (self.host, self.port),
            **{name: (LOOPBACK, getattr(self, name)) for name in torchserves},
        }


_HELP = {
    "host": "address the gateway listens on; 0.0.0.0 opens it to the network, with API keys",
    "port": "the gateway's port, the only one that clients need",
    "models": "model types to load, space-separated; each needs its archive",
    "prompt_workers": "workers of each prompt lane (default: 2; 1 on a GPU or with little memory)",
    "automask_workers": "workers of each automask lane (default: config/config.properties)",
    "inference_port": "TorchServe's inference API, on loopback",
    "management_port": "TorchServe's management API, on loopback",
    "metrics_port": "TorchServe's metrics API, on loopback",
    "model_store": "folder of the .mar archives",
    "weights_dir": "folder of the weights, also of registered weights",
    "run_root": "folder of the run folders, each named after its server's port",
    "tls_certificate": "PEM file of the gateway's certificate: it then speaks HTTPS only",
    "tls_key": "PEM file of the certificate's private key",
}


_MORE_VARIABLES = """
Every flag is also an environment variable. These variables have no flag. The gateway reads
SAMSERVE_MAX_BODY_BYTES, SAMSERVE_PROMPT_TIMEOUT_S, SAMSERVE_AUTOMASK_TIMEOUT_S, SAMSERVE_LOG_LEVEL,
SAMSERVE_TORCHSERVE_TOKENS and SAMSERVE_STAND_IN (the model type that answers for types that are not
loaded). SAMSERVE_ADMIN_TOKEN allows the registration of weights; SAMSERVE_WEIGHTS_ORIGINS and
SAMSERVE_WEIGHTS_MAX_BYTES limit it. SAMSERVE_API_KEYS_FILE names the file of API keys, which
`samserve keys` makes; without it, a host other than loopback is refused, unless SAMSERVE_OPEN=1.
The workers read SAMSERVE_REDIS_URL and SAMSERVE_DEFAULTS (segment-anything or samapi: the behaviour
of automask if output_type and include_image_edge are absent). docs/operations.md explains them.
"""


def parse_options(
    arguments: list[str] | None = None,
    *,
    prog: str = "samserve serve",
    description: str = "Serve Segment Anything: TorchServe and the samapi-compatible gateway.",
) -> Options:
    """Return the options of the command line and of the environment.

    It exits with a message if a value is wrong.

    Args:
        arguments: the words of the command line; None takes those of this process.
        prog: the command's name in messages.
        description: what the command does.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=_MORE_VARIABLES,
    )
    defaults = Options()
    for option in fields(Options):
        kind = _KINDS.get(option.name, _whole_number)
        variable = f"SAMSERVE_{option.name.upper()}"
        default = getattr(defaults, option.name)
        shown = "" if default is None else f" (default: {default})"
        parser.add_argument(
            f"--{option.name.replace('_', '-')}",
            type=kind,
            # argparse converts and checks a default that is a string, like a flag.
            default=os.environ.get(variable) or default,
            help=f"{_HELP[option.name]}{shown} [{variable}]",
        )
    options = Options(**vars(parser.parse_args(arguments)))
    unknown = [name for name in options.model_types() if name not in MODEL_TYPES]
    if unknown or not options.model_types():
        parser.error(
            f"--models (SAMSERVE_MODELS) must name some of {', '.join(MODEL_TYPES)}; "
            f"it is {options.models!r}"
        )
    return options


def _whole_number(text: str) -> int:
    number = int(text)
    if not 0 < number < 65536:
        raise ValueError
    return number


_whole_number.__name__ = "number from 1 to 65535"  # argparse's messages name the type so

_KINDS = {
    "host": str,
    "models": str,
    "model_store": Path,
    "weights_dir": Path,
    "run_root": Path,
    "tls_certificate": Path,
    "tls_key": Path,
}


def free_ports(options: Options) -> Options:
    """Return the same options with ports that are free now."""
    names = list(options.ports())
    probes = [socket.socket() for _ in names]
    for probe in probes:
        probe.bind((LOOPBACK, 0))
    chosen = {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    return Options(**{**vars(options), **chosen})
