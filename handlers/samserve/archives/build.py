"""Build `model_store/<type>.mar`; nothing to do where it holds just what it would hold.

    samserve archive vit_t

An archive is the handler with its package, the model's YAML, the weights and where they
came from (`weights.json`), and, where the YAML asks for it, the network's heavy parts
compiled for CPUs. One archive serves both lanes.

Weights of the type that were registered (weights/registered/<type>.<name>.pt) get theirs, too.

The weights are the file that was fetched, if a worker can map it as it is, and else the network's
tensors out of it: `weights.json` has the SHA-256 of the file that was fetched in any case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from samserve import places
from samserve.model_types import COMPILED_FILES, MODEL_TYPES, Precision, is_mappable, sha256_of
from samserve.serving.lanes import REGISTERED, is_registered
from samserve.serving.model_settings import ModelSettings
from samserve.weights.steps import step

HANDLER = "sam_handler.py"
MODEL_VERSION = "1.0"  # config.properties names the lanes' settings by it
MANIFEST = "MAR-INF/MANIFEST.json"
STAMP = "made_from.json"  # in a folder of what was made: from what


def main(arguments: list[str] | None = None) -> None:
    """Build the archives of a model type. Exit non-zero with the name of a missing file."""
    parser = argparse.ArgumentParser(
        prog="samserve archive",
        description="Build the .mar archive of a model type, if it is not up to date.",
    )
    parser.add_argument("type", choices=MODEL_TYPES, help="the model type")
    parser.add_argument("--weights-dir", type=Path, default=places.weights_folder())
    parser.add_argument("--model-store", type=Path, default=places.model_store_folder())
    parser.add_argument(
        "--version",
        default=MODEL_VERSION,
        help=f"other than {MODEL_VERSION}: <type>-<version>.mar, to be registered beside the first",
    )
    parsed = parser.parse_args(arguments)
    suffix = "" if parsed.version == MODEL_VERSION else f"-{parsed.version}"
    for weights in weights_of(parsed.type, parsed.weights_dir):
        archive = parsed.model_store / f"{weights.stem}{suffix}.mar"
        make(archive, parsed.type, weights, parsed.version)


def weights_of(model_type: str, weights_dir: Path) -> list[Path]:
    """The type's own weights, and those that were registered."""
    registered = sorted((weights_dir / REGISTERED).glob("*.pt"))
    return [
        weights_dir / f"{model_type}.pt",
        *(path for path in registered if is_registered(path.stem, model_type)),
    ]


def make(archive: Path, model_type: str, weights: Path, version: str = MODEL_VERSION) -> None:
    """Build the archive of these weights, if it is not there as it should be.

    Exits with the name of the file that is missing, or of the setting that is wrong.
    """
    members = members_of(model_type, weights)
    missing = [str(path) for path in members.values() if not path.is_file()]
    if missing:
        sys.exit(f"{archive}: cannot be built, there is no {', '.join(missing)}")
    settings = checked_settings(model_type, members[f"{model_type}.yaml"])
    check_weights(weights, members["weights.json"])
    # On a CPU they are mapped as they are, and a GPU gets a copy of its own anyhow.
    precision = "float32" if settings.precision == "auto" else settings.precision
    members |= serving_weights(model_type, weights, precision)
    if settings.cpu_runtime == "openvino":
        members |= compiled_parts(model_type, weights, members[f"{model_type}.pt"])
    if holds(archive, members):
        print(f"{relative(archive)}: up to date")
        return
    with step(f"{relative(archive)}: building"):
        build(archive, model_type, members, version)


def members_of(model_type: str, weights: Path) -> dict[str, Path]:
    """What the archive holds: name inside -> file it comes from."""
    members = {
        str(path.relative_to(places.LIBRARY.parent)): path
        for path in sorted(places.LIBRARY.rglob("*.py"))
    }
    members[HANDLER] = places.handler_file()
    members[f"{model_type}.pt"] = weights
    members["weights.json"] = weights.with_suffix(".json")
    members[f"{model_type}.yaml"] = places.config_folder() / "models" / f"{model_type}.yaml"
    return members


def check_weights(weights: Path, sidecar: Path) -> None:
    """Exits if they are not the file whose SHA-256 was written down beside them."""
    if sha256_of(weights) != json.loads(sidecar.read_text())["sha256"]:
        sys.exit(f"{relative(weights)} is not the file that {relative(sidecar)} tells of")


def serving_weights(model_type: str, weights: Path, precision: Precision) -> dict[str, Path]:
    """The weights as workers want them: to be mapped, and in the precision of the YAML.

    A file that a worker cannot map as it is is rewritten here, once: one of before PyTorch 1.6, and
    one that was registered and holds more than the network's tensors. A type's own weights have
    been compared with the published file, so they need not be looked into.
    """
    name, folder = f"{model_type}.pt", weights.with_name(f"{weights.stem}-{precision}")
    as_it_is = precision == "float32" and is_mappable(weights)
    if as_it_is and not is_registered(weights.stem, model_type):
        return {name: weights}
    served = folder / name
    code = ("checkpoints.py", "checkpoint_layouts.py", "checkpoint_pickles.py")
    made_from = {
        "weights": _sha256_told(weights),
        "code": [sha256_of(places.LIBRARY / "network" / file) for file in code],
    }
    if not _is_made_from(folder, made_from):
        # Heavy, and needed only here.
        import torch

        from samserve.network import checkpoints

        try:
            checkpoint = checkpoints.open_checkpoint(weights)
        except checkpoints.CheckpointError as error:
            sys.exit(str(error))
        for note in checkpoint.notes:
            print(f"{relative(weights)}: {note}", flush=True)
        with _making(folder, made_from):
            served.unlink(missing_ok=True)
            if not (as_it_is and checkpoint.is_plain):
                print(f"{relative(folder)}: converting", flush=True)
                dtype = getattr(torch, precision)
                tensors = checkpoints.serving_form(checkpoint.tensors, dtype)
                torch.save(checkpoints.alone(tensors), served)
    return {name: served if served.exists() else weights}


def compiled_parts(model_type: str, weights: Path, served: Path) -> dict[str, Path]:
    """The compiled parts' archive members, kept beside the weights they are made of.

    Args:
        served: these weights as `serving_weights` gives them.
    """
    folder = weights.with_name(f"{weights.stem}-compiled")
    members = {name: folder / name for name in COMPILED_FILES}
    network = places.LIBRARY / "network"
    sources = [network / "openvino_parts.py", *sorted(network.glob("exact_decoder/*.py"))]
    made_from = {
        "weights": _sha256_told(weights),
        "code": [sha256_of(path) for path in sources],
        "openvino": version("openvino"),
        "torch": version("torch"),
    }
    if _is_made_from(folder, made_from):
        return members
    with step(f"{relative(folder)}: compiling for OpenVINO"), _making(folder, made_from):
        # Heavy, and needed only here.
        import torch

        from samserve.network import openvino_parts
        from samserve.network.checkpoints import load_network

        openvino_parts.export(load_network(model_type, served, torch.device("cpu")), folder)
    return members


def _sha256_told(weights: Path) -> str:
    """Of a file that `check_weights` has found to be the one."""
    return str(json.loads(weights.with_suffix(".json").read_text())["sha256"])


def _is_made_from(folder: Path, made_from: dict[str, Any]) -> bool:
    stamp = folder / STAMP
    return stamp.is_file() and bool(json.loads(stamp.read_text()) == made_from)


@contextlib.contextmanager
def _making(folder: Path, made_from: dict[str, Any]) -> Iterator[None]:
    """What the block leaves in the folder is made from this; until it ends, nothing is there."""
    folder.mkdir(exist_ok=True)
    (folder / STAMP).unlink(missing_ok=True)
    yield
    (folder / STAMP).write_text(json.dumps(made_from))


def checked_settings(model_type: str, path: Path) -> ModelSettings:
    """Exits with the wrong setting's name: here at once, not in a worker that never loads."""
    try:
        settings = ModelSettings.from_yaml(yaml.safe_load(path.read_text()), {})
    except (ValueError, KeyError, TypeError, yaml.YAMLError) as exc:
        sys.exit(f"{relative(path)}: {exc}")
    if settings.model_type != model_type:
        sys.exit(f"{relative(path)}: model_type is {settings.model_type}, not {model_type}")
    return settings


def holds(archive: Path, members: dict[str, Path]) -> bool:
    """Whether the archive is whole and its members are these files, byte for byte."""
    try:
        with zipfile.ZipFile(archive) as mar:
            found = {i.filename: i.CRC for i in mar.infolist() if not i.is_dir()}
            found.pop(MANIFEST, None)
            expected = {name: crc32_of(path) for name, path in members.items()}
            return found == expected and mar.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def crc32_of(path: Path) -> int:
    """The file's CRC-32, read in pieces."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def build(
    archive: Path, model_type: str, members: dict[str, Path], version: str = MODEL_VERSION
) -> None:
    """Build the archive with torch-model-archiver, beside its destination, and move it there.

    So nobody ever sees half an archive, and several can be built at the same time.

    The archiver takes a file's own name, so links stand for the files under the names that they
    have in the archive. It copies each file once before it stores it. It does not deflate: that
    would take minutes and save a tenth.

    Exits with the archiver's own words if it fails.
    """
    own = {HANDLER, f"{model_type}.pt", f"{model_type}.yaml"}  # each has an option of its own
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".building-") as scratch:
        for name, path in members.items():
            link = Path(scratch, "own" if name in own else "extra", name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        command = [sys.executable, "-m", "model_archiver.model_packaging"]
        command += ["--archive-format", "zip-store", "--export-path", "."]
        command += ["--model-name", archive.stem, "--version", version, "--extra-files", "extra"]
        command += ["--handler", f"own/{HANDLER}", "--config-file", f"own/{model_type}.yaml"]
        command += ["--serialized-file", f"own/{model_type}.pt"]
        # It makes its copies in a folder there, which is named after the model.
        environ = {**os.environ, "TMPDIR": str(Path(scratch).resolve())}
        done = subprocess.run(
            command, cwd=scratch, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{relative(archive)}: torch-model-archiver failed:\n{done.stderr.strip()}")
        Path(scratch, archive.name).replace(archive)


def unpack(archive: Path, folder: Path) -> None:
    """What TorchServe is given in the archive's place, for all of its lanes.

    It would unpack an archive for every lane itself, at 60 MB/s for the hash that it makes in
    passing; and workers who map their weights share them only where they map the same file.

    Raises:
        OSError, zipfile.BadZipFile, zlib.error: it is damaged, or there is no room.
    """
    with zipfile.ZipFile(archive) as mar:
        mar.extractall(folder)


def relative(path: Path) -> Path:
    """For messages: seen from the repository where it lies inside."""
    state = places.state_folder()
    return path.relative_to(state) if path.is_relative_to(state) else path


if __name__ == "__main__":
    main()
