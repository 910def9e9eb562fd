"""`samserve doctor` checks this machine, and says in plain words what a server lacks here."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from samserve import places
from samserve.machine import memory_folder, usable_cores
from samserve.model_types import MODEL_TYPES

from .java import MINIMUM_MAJOR, java_home, java_major

OLDEST_PYTHON = (3, 10)
FEWEST_FREE_BYTES = 2 * 2**30
"""Enough for the archive of vit_t, its compiled form and the logs."""

MEMORY_OF_TYPE = {
    **{"vit_t": 3, "vit_b": 5, "vit_l": 9, "vit_h": 14},
    **{"sam2_t": 4, "sam2_s": 4, "sam2_bp": 5, "sam2_l": 8},
}
"""GiB that the two lanes of a model type take on a CPU, with one worker each."""


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        good: True: nothing to do. False: the server cannot start. None: it starts, with a limit.
        text: one sentence for the person who reads it, with the remedy where there is one.
    """

    good: bool | None
    text: str


def main(arguments: list[str] | None = None) -> int:
    """Print every finding and return the exit status: 0 if a server can start here, else 1."""
    parser = argparse.ArgumentParser(
        prog="samserve doctor", description="Say what this machine lacks to run a server."
    )
    parser.add_argument(
        "--models", default="vit_t", help="model types to be served, space-separated (vit_t)"
    )
    models = list(dict.fromkeys(parser.parse_args(arguments).models.split()))
    unknown = [model for model in models if model not in MODEL_TYPES]
    if unknown or not models:
        parser.error(
            f"--models must name some of {', '.join(MODEL_TYPES)}, not {' '.join(unknown)!r}"
        )
    findings = list(examine(models))
    for finding in findings:
        sign = {True: "ok      ", False: "MISSING ", None: "note    "}[finding.good]
        print(f"{sign}{finding.text}")
    failures = sum(finding.good is False for finding in findings)
    print(f"\n{failures} problem(s)." if failures else "\nA server can start on this machine.")
    return 1 if failures else 0


def examine(models: list[str]) -> Iterator[Finding]:
    """Make every check for a server of these model types."""
    checks: list[Callable[[], Iterator[Finding]]] = [python, packages, java, processor, disk]
    for check in checks:
        yield from check()
    yield from memory(models)
    for model in models:
        yield from model_files(model)


def python() -> Iterator[Finding]:
    """Check the version of Python."""
    running = ".".join(map(str, sys.version_info[:3]))
    oldest = ".".join(map(str, OLDEST_PYTHON))
    if sys.version_info < OLDEST_PYTHON:
        yield Finding(False, f"Python {running} is too old. Install Python {oldest} or newer.")
    else:
        yield Finding(True, f"Python {running} runs.")


def packages() -> Iterator[Finding]:
    """Check that every package of the extra `server` is installed."""
    missing = []
    for text in requires("samserve") or ():
        requirement = Requirement(text)
        if requirement.name == "samserve":
            continue
        wanted = any(
            requirement.marker is None or requirement.marker.evaluate({"extra": extra})
            for extra in ("", "worker", "gateway", "conversion")
        )
        if wanted and not _is_installed(requirement.name):
            missing.append(requirement.name)
    if missing:
        yield Finding(
            False,
            f"These Python packages are not installed: {', '.join(missing)}. "
            "Install them with: pip install 'samserve[server]'",
        )
    else:
        yield Finding(True, "All Python packages of the server are installed.")


def _is_installed(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def java() -> Iterator[Finding]:
    """Check that there is a Java for TorchServe."""
    try:
        home = java_home()
    except RuntimeError:
        yield Finding(
            False,
            f"TorchServe needs Java {MINIMUM_MAJOR} or newer. Install it with your system's "
            "package manager, or with: pip install 'samserve[java]'",
        )
        return
    yield Finding(True, f"TorchServe runs on Java {java_major(home / 'bin' / 'java')} in {home}.")


def processor() -> Iterator[Finding]:
    """Tell how many cores there are, and whether PyTorch can use a GPU."""
    yield Finding(True, f"{usable_cores()} processor core(s) can be used.")
    try:
        import torch
    except ImportError:
        return  # `packages` reports it
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding(True, f"PyTorch can use {len(names)} GPU(s): {', '.join(names)}.")
    elif shutil.which("nvidia-smi"):
        yield Finding(
            None,
            f"This machine has an NVIDIA driver, but PyTorch {torch.__version__} cannot use the "
            "GPU. Install a PyTorch that was built for your CUDA version. Until then the server "
            "computes on the CPU.",
        )
    else:
        yield Finding(None, "There is no NVIDIA GPU. The server computes on the CPU.")


def memory(models: list[str]) -> Iterator[Finding]:
    """Compare the machine's memory with the usual need of these model types."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    needed = sum(MEMORY_OF_TYPE[model] for model in models)
    good = True if total >= needed else None
    yield Finding(
        good,
        f"The machine has {total:.0f} GiB of memory; a server of {' and '.join(models)} "
        f"takes about {needed} GiB on a CPU.",
    )
    if memory_folder() is None:
        yield Finding(None, "There is no /dev/shm. Workers share embeddings on the disk instead.")


def disk() -> Iterator[Finding]:
    """Check that the state folder can be written and has room."""
    folder = places.state_folder()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as exc:
        yield Finding(False, f"{folder} cannot be written by this user: {exc.strerror}.")
        return
    free = shutil.disk_usage(existing).free
    enough = "" if free >= FEWEST_FREE_BYTES else " The server needs 2 GiB to start with."
    yield Finding(
        free >= FEWEST_FREE_BYTES,
        f"Weights, archives and logs go to {folder}; {free / 2**30:.1f} GiB are free.{enough}",
    )


def model_files(model: str) -> Iterator[Finding]:
    """Tell whether the weights and the archive of a model type are there."""
    weights = places.weights_folder() / f"{model}.pt"
    archive = places.model_store_folder() / f"{model}.mar"
    for path, what in ((weights, "weights"), (archive, "archive")):
        yield _file(path, f"The {what} of {model}")


def _file(path: Path, name: str) -> Finding:
    if path.is_file():
        return Finding(True, f"{name}: {path}.")
    return Finding(None, f"{name}: not there yet. `samserve serve` makes {path} at its start.")


if __name__ == "__main__":
    sys.exit(main())
