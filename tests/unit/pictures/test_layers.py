"""The package for pictures is independent of the network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from samserve import pictures


def test_pictures_import_neither_torch_nor_the_network() -> None:
    [folder] = pictures.__path__
    modules = [f"samserve.pictures.{path.stem}" for path in Path(folder).glob("*.py")]
    others = ("torch", "samserve.network", "samserve.embeddings", "samserve.masks")
    code = (
        "import importlib, sys\n"
        f"for name in {sorted(modules)}: importlib.import_module(name)\n"
        f"sys.exit(', '.join(name for name in {others} if name in sys.modules) or 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
