"""This module builds `model_store/<type>.mar`, unless the archive is up to date.

    samserve archive vit_t

An archive has the handler and this package, the model's YAML, the weights, their source
(`weights.json`), the digests of all files (`digests.json`), and, if the YAML says so, the encoder
and the upscaler exported for CPUs. One archive serves both lanes of a model type.

Registered weights of the type (weights/registered/<type>.<name>.pt) get an archive each.

The weights in the archive are the fetched file if a worker can map it unchanged, and otherwise a
file with the network's tensors only. `weights.json` has the SHA-256 of the fetched file in any
case.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from samserve import places
from samserve.model_types import COMPILED_FILES, MODEL_TYPES, Precision, is_mappable, sha256_of
from samserve.serving.lanes import REGISTERED, is_registered
from samserve.weights.steps import step

from .digests import DIGESTS, check_unpacked, digests_of
from .settings import checked_settings, settings_file

HANDLER = "sam_handler.py"
MODEL_VERSION = "1.0"  # config.properties has the settings of this version
MANIFEST = "MAR-INF/MANIFEST.json"
STAMP = "made_from.json"  # the inputs from which the other files of a folder were made


def main(arguments: list[str] | None = None) -> None:
    """Build the archives of a model type. Exit with an error that names a missing file."""
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
        help=f"a version other than {MODEL_VERSION} gives <type>-<version>.mar, for TorchServe to "
        "serve beside the first",
    )
    parsed = parser.parse_args(arguments)
    if not re.fullmatch(r"\w[\w.-]*", parsed.version):
        parser.error("--version must have letters, digits, dots and hyphens only, as 2.0")
    suffix = "" if parsed.version == MODEL_VERSION else f"-{parsed.version}"
    for weights in weights_of(parsed.type, parsed.weights_dir):
        archive = parsed.model_store / f"{weights.stem}{suffix}.mar"
        build_if_stale(archive, parsed.type, weights, parsed.version)


def weights_of(model_type: str, weights_dir: Path) -> list[Path]:
    """Return the paths of a model type's published weights and of its registered weights."""
    registered = sorted((weights_dir / REGISTERED).glob("*.pt"))
    return [
        weights_dir / f"{model_type}.pt",
        *(path for path in registered if is_registered(path.stem, model_type)),
    ]


def build_if_stale(
    archive: Path, model_type: str, weights: Path, version: str = MODEL_VERSION
) -> None:
    """Build the archive of these weights, unless it is up to date.

    Args:
        archive: the path of the .mar file.
        model_type: the model type.
        weights: the checkpoint, with its sidecar `<name>.json` beside it.
        version: the archive's version for TorchServe.

    Raises:
        SystemExit: a file is missing, or a setting or the weights are wrong; the message names it.
    """
    missing = [str(p) for p in (weights, weights.with_suffix(".json")) if not p.is_file()]
    if missing:
        sys.exit(f"{archive}: cannot be built: {', '.join(missing)} missing")
    settings = checked_settings(model_type)
    members = members_of(model_type, weights)
    check_digest(weights, members["weights.json"])
    # On a CPU the file is mapped unchanged. A GPU gets a converted copy when the worker starts.
    precision = "float32" if settings.precision == "auto" else settings.precision
    members |= serving_weights(model_type, weights, precision)
    if settings.cpu_runtime == "openvino":
        members |= compiled_parts(model_type, weights, members[f"{model_type}.pt"])
    with tempfile.TemporaryDirectory(prefix="samserve-digests-") as scratch:
        digests = Path(scratch, DIGESTS)
        digests.write_text(digests_of(members, {weights: _sha256_in_sidecar(weights)}))
        members[DIGESTS] = digests
        if is_up_to_date(archive, members):
            print(f"{relative(archive)}: up to date")
            return
        with step(f"{relative(archive)}: building"):
            run_archiver(archive, model_type, members, version)


def members_of(model_type: str, weights: Path) -> dict[str, Path]:
    """Return the files of an archive: from the name in the archive to the path of the file."""
    members = {
        str(path.relative_to(places.LIBRARY.parent)): path
        for path in sorted(places.LIBRARY.rglob("*.py"))
    }
    members[HANDLER] = places.handler_file()
    members[f"{model_type}.pt"] = weights
    members["weights.json"] = weights.with_suffix(".json")
    members[f"{model_type}.yaml"] = settings_file(model_type, weights.parent)
    return members


def check_digest(weights: Path, sidecar: Path) -> None:
    """Exit with an error unless the weights have the SHA-256 in their sidecar."""
    if sha256_of(weights) != json.loads(sidecar.read_text())["sha256"]:
        sys.exit(f"{relative(weights)} is not the file that {relative(sidecar)} describes")


def serving_weights(model_type: str, weights: Path, precision: Precision) -> dict[str, Path]:
    """Return the archive member with the weights: mappable, and in the precision of the YAML.

    A file that a worker cannot map unchanged is rewritten once: a file written before PyTorch 1.6,
    and a registered file with more than the network's tensors. Published weights have been compared
    with their SHA-256, so their content is not examined.
    """
    name, folder = f"{model_type}.pt", weights.with_name(f"{weights.stem}-{precision}")
    is_servable = precision == "float32" and is_mappable(weights)
    if is_servable and not is_registered(weights.stem, model_type):
        return {name: weights}
    served = folder / name
    code = ("checkpoints.py", "checkpoint_layouts.py", "checkpoint_pickles.py")
    made_from = {
        "weights": _sha256_in_sidecar(weights),
        "code": [sha256_of(places.LIBRARY / "network" / file) for file in code],
    }
    if not _is_made_from(folder, made_from):
        # Imported here, because torch takes seconds to import.
        import torch

        from samserve.network import checkpoints

        try:
            checkpoint = checkpoints.open_checkpoint(weights)
        except checkpoints.CheckpointError as error:
            sys.exit(str(error))
        for note in checkpoint.notes:
            print(f"{relative(weights)}: {note}", flush=True)
        with _stamped(folder, made_from):
            served.unlink(missing_ok=True)
            if not (is_servable and checkpoint.is_plain):
                print(f"{relative(folder)}: converting", flush=True)
                dtype = getattr(torch, precision)
                tensors = checkpoints.serving_form(checkpoint.tensors, dtype)
                torch.save(checkpoints.alone(tensors), served)
    return {name: served if served.exists() else weights}


def compiled_parts(model_type: str, weights: Path, served: Path) -> dict[str, Path]:
    """Return the archive members with the compiled parts, which are kept beside the weights.

    They are compiled again if the weights, the code of the networks and of their export, OpenVINO
    or PyTorch has changed.

    Args:
        model_type: the model type.
        weights: the checkpoint.
        served: the same weights as `serving_weights` returns them.
    """
    folder = weights.with_name(f"{weights.stem}-compiled")
    members = {name: folder / name for name in COMPILED_FILES}
    made_from = {
        "weights": _sha256_in_sidecar(weights),
        "code": [sha256_of(path) for path in sorted((places.LIBRARY / "network").rglob("*.py"))],
        "openvino": version("openvino"),
        "torch": version("torch"),
    }
    if _is_made_from(folder, made_from):
        return members
    with step(f"{relative(folder)}: compiling for OpenVINO"), _stamped(folder, made_from):
        # Imported here, because torch takes seconds to import.
        import torch

        from samserve.network import openvino_parts
        from samserve.network.checkpoints import load_network

        openvino_parts.export(load_network(model_type, served, torch.device("cpu")), folder)
    return members


def _sha256_in_sidecar(weights: Path) -> str:
    """Return the SHA-256 in the sidecar. `check_digest` has compared it with the weights."""
    return str(json.loads(weights.with_suffix(".json").read_text())["sha256"])


def _is_made_from(folder: Path, made_from: dict[str, Any]) -> bool:
    """Return whether the folder's files were made from these inputs."""
    stamp = folder / STAMP
    return stamp.is_file() and bool(json.loads(stamp.read_text()) == made_from)


@contextlib.contextmanager
def _stamped(folder: Path, made_from: dict[str, Any]) -> Iterator[None]:
    """Stamp the folder after the block has made its files. Without a stamp they are invalid."""
    folder.mkdir(exist_ok=True)
    (folder / STAMP).unlink(missing_ok=True)
    yield
    (folder / STAMP).write_text(json.dumps(made_from))


def is_up_to_date(archive: Path, members: dict[str, Path]) -> bool:
    """Return whether the archive is undamaged and has exactly these files, byte for byte."""
    try:
        with zipfile.ZipFile(archive) as mar:
            actual = {i.filename: i.CRC for i in mar.infolist() if not i.is_dir()}
            actual.pop(MANIFEST, None)
            expected = {name: crc32_of(path) for name, path in members.items()}
            return actual == expected and mar.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def crc32_of(path: Path) -> int:
    """Return the file's CRC-32, read in pieces."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc


def run_archiver(
    archive: Path, model_type: str, members: dict[str, Path], version: str = MODEL_VERSION
) -> None:
    """Build the archive with torch-model-archiver in a temporary folder, and move it into place.

    So no process sees half an archive, and several can be built at the same time.

    The archiver stores files under the names that they have on disk. So it gets links to the files,
    with the names that they have in the archive. It copies each file once before it stores it. It
    does not compress: that would take minutes and save a tenth.

    Raises:
        SystemExit: the archiver fails; the message has its output.
    """
    with_option = {HANDLER, f"{model_type}.pt", f"{model_type}.yaml"}  # each has its option
    archive.parent.mkdir(parents=True, exist_ok=True)
    _remove_unfinished(archive.parent)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=_UNFINISHED) as scratch:
        for name, path in members.items():
            link = Path(scratch, "main" if name in with_option else "extra", name)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path.resolve())
        command = [sys.executable, "-m", "model_archiver.model_packaging"]
        command += ["--archive-format", "zip-store", "--export-path", "."]
        command += ["--model-name", archive.stem, "--version", version, "--extra-files", "extra"]
        command += ["--handler", f"main/{HANDLER}", "--config-file", f"main/{model_type}.yaml"]
        command += ["--serialized-file", f"main/{model_type}.pt"]
        # The archiver copies the files to a folder in TMPDIR that is named after the model, which
        # builds of one model at the same time would share.
        environ = {**os.environ, "TMPDIR": str(Path(scratch).resolve())}
        done = subprocess.run(
            command, cwd=scratch, env=environ, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(f"{relative(archive)}: torch-model-archiver failed:\n{done.stderr.strip()}")
        Path(scratch, archive.name).replace(archive)


_UNFINISHED = ".building-"
_UNFINISHED_S = 86400.0


def _remove_unfinished(folder: Path) -> None:
    """Remove what builds have left that were killed a day ago or earlier."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        with contextlib.suppress(FileNotFoundError):  # another build removes it
            if time.time() - path.stat().st_mtime > _UNFINISHED_S:
                shutil.rmtree(path, ignore_errors=True)


def unpack_archive(archive: Path, folder: Path) -> None:
    """Unpack an archive to a folder, which TorchServe loads for all lanes instead of the archive.

    TorchServe would unpack the archive for every lane, at 60 MB/s because it computes a hash. And
    workers share the memory of mapped weights only if they map the same file.

    Raises:
        DamagedArchive: a file is not the one that was put into the archive.
        OSError, zipfile.BadZipFile, zlib.error: the archive is damaged, or the disk is full.
    """
    with zipfile.ZipFile(archive) as mar:
        mar.extractall(folder)
    check_unpacked(folder)


def relative(path: Path) -> Path:
    """Return a path for messages: relative to the state folder if it is inside that."""
    state = places.state_folder()
    return path.relative_to(state) if path.is_relative_to(state) else path


if __name__ == "__main__":
    main()
