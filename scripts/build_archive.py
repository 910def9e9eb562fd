"""Build `model_store/<type>.mar`; nothing to do where it holds just what it would hold.

    python -m scripts.build_archive vit_t

An archive is the handler with its package, the model's YAML, the weights and where they
came from (`weights.json`), and, where the YAML asks for it, the network's heavy parts
compiled for CPUs. One archive serves both lanes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from importlib.metadata import version
from pathlib import Path

import yaml

from samserve.model_types import COMPILED_FILES, sha256_of
from samserve.settings import ModelSettings

from .options import ROOT

HANDLERS = ROOT / "handlers"
MODEL_VERSION = "1.0"  # config.properties names the lanes' settings by it
MANIFEST = "MAR-INF/MANIFEST.json"


def main() -> None:
    """Exits non-zero with the missing file's name."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("type", help="model type, as vit_t")
    parser.add_argument("--weights-dir", type=Path, default=ROOT / "weights")
    parser.add_argument("--model-store", type=Path, default=ROOT / "model_store")
    parser.add_argument(
        "--version",
        default=MODEL_VERSION,
        help=f"other than {MODEL_VERSION}: <type>-<version>.mar, to be registered beside the first",
    )
    arguments = parser.parse_args()
    version = arguments.version
    name = arguments.type if version == MODEL_VERSION else f"{arguments.type}-{version}"
    archive = arguments.model_store / f"{name}.mar"
    members = members_of(arguments.type, arguments.weights_dir)
    missing = [str(path) for path in members.values() if not path.is_file()]
    if missing:
        sys.exit(f"{archive}: cannot be built, there is no {', '.join(missing)}")
    settings = checked_settings(arguments.type, members[f"{arguments.type}.yaml"])
    if settings.cpu_runtime == "openvino":
        members |= compiled_parts(arguments.type, arguments.weights_dir)
    if holds(archive, members):
        print(f"{relative(archive)}: up to date")
        return
    print(f"{relative(archive)}: building", flush=True)
    build(archive, arguments.type, members, version)
    print(f"{relative(archive)}: {archive.stat().st_size / 1e6:.1f} MB")


def members_of(model_type: str, weights_dir: Path) -> dict[str, Path]:
    """What the archive holds: name inside -> file it comes from."""
    members = {
        str(path.relative_to(HANDLERS)): path
        for path in sorted(HANDLERS.rglob("*"))
        if path.is_file() and path.suffix == ".py"
    }
    members[f"{model_type}.pt"] = weights_dir / f"{model_type}.pt"
    members["weights.json"] = weights_dir / f"{model_type}.json"
    members[f"{model_type}.yaml"] = ROOT / "config" / "models" / f"{model_type}.yaml"
    return members


def compiled_parts(model_type: str, weights_dir: Path) -> dict[str, Path]:
    """The compiled parts' archive members, kept beside the weights they are made of."""
    weights, folder = weights_dir / f"{model_type}.pt", weights_dir / f"{model_type}-compiled"
    members = {name: folder / name for name in COMPILED_FILES}
    sources = [*HANDLERS.rglob("compiled.py"), *HANDLERS.rglob("factored.py")]
    made_from = {
        "weights": sha256_of(weights),
        "code": [sha256_of(path) for path in sources],
        "openvino": version("openvino"),
        "torch": version("torch"),
    }
    stamp = folder / "made_from.json"
    if stamp.is_file() and json.loads(stamp.read_text()) == made_from:
        return members
    print(f"{relative(folder)}: compiling", flush=True)
    # Heavy, and needed only here.
    import torch

    from samserve import compiled
    from samserve.checkpoints import load_model

    folder.mkdir(exist_ok=True)
    stamp.unlink(missing_ok=True)  # until all of it is there, none of it is
    compiled.export(load_model(model_type, weights, torch.device("cpu")), folder)
    stamp.write_text(json.dumps(made_from))
    return members


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
            expected = {name: zlib.crc32(path.read_bytes()) for name, path in members.items()}
            return found == expected and mar.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error):
        return False


def build(
    archive: Path, model_type: str, members: dict[str, Path], version: str = MODEL_VERSION
) -> None:
    """Build beside the destination, then move: nobody ever sees half an archive."""
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".building-") as scratch:
        stage, extra, out = (Path(scratch, name) for name in ("stage", "extra", "out"))
        out.mkdir()
        named = {
            "sam_handler.py": "--handler",
            f"{model_type}.pt": "--serialized-file",
            f"{model_type}.yaml": "--config-file",
        }
        options = []
        for name, path in members.items():
            # The archiver puts the content of an extra folder at the archive's root.
            staged = (stage if name in named else extra) / name
            staged.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, staged)
            if name in named:
                options += [named[name], str(staged)]
        command = [
            str(Path(sys.executable).with_name("torch-model-archiver")),
            *("--model-name", model_type, "--version", version, *options),
            *("--extra-files", str(extra), "--export-path", str(out)),
        ]
        subprocess.run(command, check=True)
        built = out / f"{model_type}.mar"
        if not holds(built, members):
            raise RuntimeError(f"torch-model-archiver left something out of {archive.name}")
        built.replace(archive)


def relative(path: Path) -> Path:
    """For messages: seen from the repository where it lies inside."""
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


if __name__ == "__main__":
    main()
