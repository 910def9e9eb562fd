"""A small benchmark runs, and does not change the published figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT


def test_a_small_run(tmp_path: Path) -> None:
    page = ROOT / "docs" / "benchmarks.md"
    before = page.read_bytes()
    raw = tmp_path / "raw.json"
    command = [sys.executable, "-m", "bench", "--json", str(raw), "--repeats", "1"]
    command += ["--sizes", "128x128", "--points", "2", "--cases", "known-box", "automask"]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr[-3000:]
    for contender in ("reference", "samserve in process", "TorchServe", "gateway"):
        assert f"| {contender} " in completed.stdout
    assert {row["case"] for row in json.loads(raw.read_text())["times"]} >= {
        "known-box",
        "automask",
    }
    assert page.read_bytes() == before
