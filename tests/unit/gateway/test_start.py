"""A wrong setting stops the gateway with one line that names the variable."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.paths import ROOT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SAMSERVE_PORT", "many"),
        ("SAMSERVE_MAX_BODY_BYTES", "abc"),
        ("SAMSERVE_ADMIN_TOKEN", "short"),
        ("SAMSERVE_WEIGHTS_ORIGINS", "zenodo.org"),
        ("SAMSERVE_STAND_IN", "vit_x"),
        ("SAMSERVE_STAND_IN", "vit_b"),
    ],
)
def test_a_wrong_setting_is_named_in_a_line(name: str, value: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "samserve_gateway"],
        env={**os.environ, name: value},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert name in line
    assert "short" not in line.removeprefix(name)  # a token does not belong in a log
