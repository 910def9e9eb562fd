"""This module makes packages without content, and an index of them of the kind of PEP 503."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from pathlib import Path

# Builds a package from its source only where PyTorch can be imported, as that of `sam2` does.
SOURCE_BACKEND = """\
import importlib.metadata
import os
import zipfile

INFO = "sam2-1.0.dist-info/"


def build_wheel(folder, config_settings=None, metadata_directory=None):
    importlib.metadata.version("torch")
    assert os.environ["SAM2_BUILD_CUDA"] == "0"
    tags = ["Wheel-Version: 1.0", "Generator: test", "Root-Is-Purelib: true", "Tag: py3-none-any"]
    name = "sam2-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr(INFO + "METADATA", "Metadata-Version: 2.1\\nName: sam2\\nVersion: 1.0\\n")
        wheel.writestr(INFO + "WHEEL", "\\n".join(tags))
        wheel.writestr(INFO + "RECORD", "")
    return name
"""


def put_wheel(index: Path, name: str, version: str) -> None:
    """Add an empty package to an index of the kind that PEP 503 describes."""
    folder = index / name
    folder.mkdir(parents=True, exist_ok=True)
    file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    with zipfile.ZipFile(folder / file, "w") as wheel:
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    links = "".join(f'<a href="{f.name}">{f.name}</a>' for f in folder.glob("*.whl"))
    (folder / "index.html").write_text(f"<!DOCTYPE html><html><body>{links}</body></html>")


def put_source(index: Path) -> str:
    """Add a package that is published as source only, and return the line of a lock for it."""
    folder = index / "sam2"
    folder.mkdir(parents=True)
    files = {
        "backend.py": SOURCE_BACKEND,
        "pyproject.toml": '[build-system]\nrequires = []\nbuild-backend = "backend"\n'
        'backend-path = ["."]\n[project]\nname = "sam2"\nversion = "1.0"\n',
        "PKG-INFO": "Metadata-Version: 2.1\nName: sam2\nVersion: 1.0\n",
    }
    file = folder / "sam2-1.0.tar.gz"
    with tarfile.open(file, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"sam2-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    (folder / "index.html").write_text(f'<!DOCTYPE html><a href="{file.name}">{file.name}</a>')
    return f"sam2==1.0 --hash=sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}\n"


def hashed(lock: str, index: Path) -> str:
    """Return the lock with the SHA-256 of each package's file in this index."""
    lines = []
    for line in lock.splitlines():
        if "==" in line:
            name, version = line.split(" ")[0].split("==")
            [file] = (index / name).glob(f"*-{version}-*")
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            hashes = f" \\\n    --hash=sha256:{'0' * 64} \\\n    --hash=sha256:{digest}"
            lines.append(line + hashes)
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"
