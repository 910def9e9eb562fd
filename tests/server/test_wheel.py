"""The wheel runs a server in a folder that is no clone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import shapely

from samserve_launcher import loopback
from samserve_launcher.options import Options, free_ports
from tests.support.geometry import rasterise, same_mask
from tests.support.paths import ROOT
from tests.support.sample_pictures import base64_png, picture
from tests.support.servers import port_flags
from tests.support.waiting import wait_for

BBOX = [20, 30, 70, 78]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel and unpack it into a folder of its own; return that folder."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(
            ".*", "weights", "run", "out", "*.mar", "*.egg-info", "__pycache__", "build", "docs"
        ),
    )
    # The pattern `weights` leaves out the package of this name, too.
    shutil.copytree(ROOT / "handlers/samserve/weights", source / "handlers/samserve/weights")
    pip = [sys.executable, "-m", "pip"]
    quiet = ["--quiet", "--disable-pip-version-check", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "wheel", *quiet, "-w", str(folder), str(source)], check=True)
    [wheel] = folder.glob("samserve-*.whl")
    target = folder / "site-packages"
    subprocess.run([*pip, "install", *quiet, "--target", str(target), str(wheel)], check=True)
    shutil.rmtree(source)
    return target


def test_only_names_of_samserve_are_installed(installed: Path) -> None:
    names = {path.name for path in installed.iterdir() if path.suffix != ".dist-info"}
    packages = {f"samserve{part}" for part in ("", "_client", "_config", "_gateway", "_launcher")}
    assert names == {*packages, "sam_handler.py", "bin"} | (names & {"__pycache__"})


def test_the_wheel_serves_in_an_empty_folder(
    installed: Path, tmp_path: Path, reference_masks: Any
) -> None:
    data, empty = tmp_path / "data", tmp_path / "empty"
    empty.mkdir()
    # The weights are there already; downloading them is tested elsewhere.
    shutil.copytree(ROOT / "weights", data / "samserve" / "weights", symlinks=False)
    options = free_ports(Options())
    environ = {**os.environ, "PYTHONPATH": str(installed), "XDG_DATA_HOME": str(data)}
    output = tmp_path / "output"
    with output.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "samserve_launcher", "serve", *port_flags(options)],
            cwd=empty,
            env=environ,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        wait_for(lambda: "is ready after" in output.read_text() or process.poll() is not None, 300)
        assert process.poll() is None, output.read_text()
        commands = [c.cmdline() for c in psutil.Process(process.pid).children(recursive=True)]
        assert any("samserve_gateway" in command for command in commands)
        body = {"type": "vit_t", "bbox": BBOX, "b64img": base64_png(picture("coins"))}
        answer = loopback.post(f"{options.url}/sam/", timeout_s=60, json=body)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    [feature] = json.loads(answer.content)
    [mask], _ = reference_masks("coins", BBOX)
    assert shapely.geometry.shape(feature["geometry"]).is_valid
    assert same_mask(rasterise(feature["geometry"], *mask.shape), mask)
    assert (data / "samserve" / "model_store" / "vit_t.mar").is_file()
    assert not list(empty.iterdir())
