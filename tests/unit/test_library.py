"""The library segments pictures in a process that has no server software at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from PIL import Image

from tests.support.paths import ROOT
from tests.support.sample_pictures import picture

SERVER_SOFTWARE = (
    "ts",
    "fastapi",
    "starlette",
    "uvicorn",
    "aiohttp",
    "redis",
    "samserve_gateway",
    "samserve_client",
)

PROGRAM = """
import sys

weights, picture, *missing = sys.argv[1:]
for name in missing:
    sys.modules[name] = None  # importing it raises ImportError

import samserve

segmenter = samserve.load("vit_t", weights, device="cpu")
[mask] = segmenter.prompt(segmenter.embed(picture), box=(20, 30, 70, 78))
print(mask.area)
"""


def test_the_library_segments_without_server_software(tmp_path: Path, reference_masks: Any) -> None:
    Image.fromarray(picture("coins")).save(tmp_path / "coins.png")
    weights = ROOT / "weights" / "vit_t.pt"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, weights, tmp_path / "coins.png", *SERVER_SOFTWARE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [mask], _ = reference_masks("coins", [20, 30, 70, 78])
    assert int(done.stdout) == mask.sum()
