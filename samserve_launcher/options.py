"""What a server can be told: flags, and the environment variables of the same names."""

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
    """Each field is `--its-name` on the command line, or `SAMSERVE_ITS_NAME`; the flag wins."""

    host: str = LOOPBACK
    port: int = 8000
    models: str = "vit_t"
    prompt_workers: int | None = None
    automask_workers: int | None = None
    inference_port: int = 8080
    management_port: int = 8081
    metrics_port: int = 8082
    grpc_inference_port: int = 7070
    grpc_management_port: int = 7071
    model_store: Path = field(default_factory=places.model_store_folder)
    weights_dir: Path = field(default_factory=places.weights_folder)
    run_root: Path = field(default_factory=places.run_folder)

    @property
    def url(self) -> str:
        """The gateway, as a client on this machine writes it."""
        host = {"0.0.0.0": LOOPBACK, "::": "::1"}.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"

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
        """Where this server keeps its files while it runs."""
        return self.run_root / str(self.port)

    @property
    def models_dir(self) -> Path:
        """Where its archives are unpacked while it runs."""
        return self.run_dir / "models"

    @property
    def cache_dir(self) -> Path:
        """Where its workers share embeddings, in memory where the system has a folder for that."""
        memory = memory_folder()
        name = f"samserve-{os.getuid()}-{self.port}"
        return memory / name if memory else self.run_dir / "embeddings"

    @property
    def jobs_dir(self) -> Path:
        """Where gateway and workers tell each other of the automasks under way."""
        return self.run_dir / "jobs"

    @property
    def key_file(self) -> Path:
        """TorchServe's tokens."""
        return self.run_dir / "key_file.json"

    def model_types(self) -> list[str]:
        return self.models.split()

    def families(self) -> list[str]:
        """What to load: each type, and after it the weights of it that were registered."""
        archives = sorted(path.stem for path in self.model_store.glob("*.mar"))
        return [
            family
            for model in self.model_types()
            for family in (model, *(name for name in archives if is_registered(name, model)))
        ]

    def lanes(self) -> dict[str, str]:
        """Each lane to load -> its family, whose name its archive bears."""
        return lanes_of(self.families())

    def ports(self) -> dict[str, tuple[str, int]]:
        """Every port to be bound: the field that sets it -> (address, port)."""
        torchserves = [f.name for f in fields(self) if f.name.endswith("_port")]
        return {
            "port": (self.host, self.port),
            **{name: (LOOPBACK, getattr(self, name)) for name in torchserves},
        }


_HELP = {
    "host": "address the gateway listens on; 0.0.0.0 opens it to the network, unencrypted",
    "port": "the gateway's port, the only one that clients need",
    "models": "model types to load, space-separated; each needs its archive",
    "prompt_workers": "workers of each prompt lane (default: config/config.properties)",
    "automask_workers": "workers of each automask lane (default: config/config.properties)",
    "inference_port": "TorchServe's inference API, on loopback",
    "management_port": "TorchServe's management API, on loopback",
    "metrics_port": "TorchServe's metrics API, on loopback",
    "grpc_inference_port": "TorchServe's gRPC, on loopback; not used, but it cannot be turned off",
    "grpc_management_port": "the same, its second port",
    "model_store": "folder of the .mar archives",
    "weights_dir": "folder of the weights; those that are registered are put there",
    "run_root": "folder of the servers' own folders, each called as its port is",
}


def parse_options(arguments: list[str] | None = None, *, prog: str = "samserve serve") -> Options:
    """From the command line and the environment; exits with a message on a bad value."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Serve Segment Anything: TorchServe and the samapi-compatible gateway.",
        epilog="Every flag is also an environment variable, which `make serve` passes on. Besides, "
        "the gateway reads SAMSERVE_MAX_BODY_BYTES, SAMSERVE_PROMPT_TIMEOUT_S, "
        "SAMSERVE_AUTOMASK_TIMEOUT_S, SAMSERVE_LOG_LEVEL, SAMSERVE_TORCHSERVE_TOKENS, "
        "SAMSERVE_STAND_IN (the model type that answers for those not loaded), and for "
        "the registration of weights SAMSERVE_ADMIN_TOKEN, which allows it, "
        "SAMSERVE_WEIGHTS_ORIGINS and SAMSERVE_WEIGHTS_MAX_BYTES; "
        "the workers read SAMSERVE_REDIS_URL and SAMSERVE_DEFAULTS (segment-anything or samapi: "
        "what automask does where output_type and include_image_edge are absent).",
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
            # a string default is cast and checked just as a flag is
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
}


def free_ports(options: Options) -> Options:
    """The same options with ports that nobody uses now."""
    names = list(options.ports())
    probes = [socket.socket() for _ in names]
    for probe in probes:
        probe.bind((LOOPBACK, 0))
    chosen = {name: probe.getsockname()[1] for name, probe in zip(names, probes, strict=True)}
    for probe in probes:
        probe.close()
    return Options(**{**vars(options), **chosen})
