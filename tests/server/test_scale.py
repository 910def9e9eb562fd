"""`samserve scale` sets a lane's workers through the management API."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from tests.support.lanes import lanes_of, scale, scaled
from tests.support.paths import ROOT


def test_a_lane_grows_and_shrinks(server: Any) -> None:
    before = lanes_of(scale(server).stdout)
    assert {lane: row[:3] for lane, row in before.items()} == {
        "vit_t": ["1", "1", "4"],
        "vit_t-automask": ["1", "1", "1"],
    }
    grown = scaled(server, "vit_t-automask", 2)
    assert grown[:2] == ["2", "2"]
    assert len(set(grown[4:])) == 2
    shrunk = lanes_of(scale(server, "vit_t-automask", "1").stdout)
    assert shrunk["vit_t-automask"][:2] == ["1", "1"]
    assert shrunk["vit_t"] == before["vit_t"]


def test_an_unknown_lane_says_so(server: Any) -> None:
    completed = scale(server, "vit_x", "2")
    assert completed.returncode != 0
    assert "vit_x" in completed.stderr


def test_no_server_says_so() -> None:
    command = [sys.executable, "-m", "samserve_launcher", "scale", "--port", "1"]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert completed.returncode != 0
    assert "no server runs on port 1. Running: " in completed.stderr
