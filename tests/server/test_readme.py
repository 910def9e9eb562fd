"""The documents' code blocks, run as written, against `make serve` on its default ports.

They are those of README.md, docs/http-api.md and docs/operations.md.

Other tests paste the request that a ready server prints, start a second server by mistake, and
press Ctrl-C.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import psutil
import pytest
import shapely.geometry
from mobile_sam import SamAutomaticMaskGenerator, SamPredictor
from PIL import Image

from samserve_launcher.checks import check_ports
from samserve_launcher.options import Options
from tests.support.geometry import rasterise, same_mask
from tests.support.paths import ROOT
from tests.support.sample_pictures import picture

DOCUMENTS = ("README.md", "docs/http-api.md", "docs/operations.md")
BLOCKS = [
    block
    for name in DOCUMENTS
    for block in re.findall(
        r"^```(\w+)\n(.*?)^```", (ROOT / name).read_text(), re.MULTILINE | re.DOTALL
    )
]

# A person's shell lacks the variables of the make that runs the tests.
ENVIRON = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MAKE", "MFLAGS", "FLAGS", "SAMSERVE_"))
}


# For the documents' commands, and for the command that `make serve` prints to be pasted.
needs_curl = pytest.mark.needs("curl", "base64")


def blocks(language: str, containing: str) -> list[str]:
    found = [text for kind, text in BLOCKS if kind == language and containing in text]
    assert found, f"{', '.join(DOCUMENTS)} have no {language} block with {containing}"
    return found


def shell(block: str) -> str:
    completed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=ROOT,
        env=ENVIRON,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 0, completed.stdout + completed.stderr
    return completed.stdout


def python(block: str) -> str:
    completed = subprocess.run(
        [sys.executable, "-c", block], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert completed.returncode == 0, completed.stderr
    return completed.stdout


@pytest.fixture(scope="module")
def made_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """Run `make serve` as a person does; yield the process and the file of its output."""
    check_ports(Options())  # names the process that holds a port
    [block] = blocks("sh", "make serve")
    output = tmp_path_factory.mktemp("serve") / "said"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", block],
            cwd=ROOT,
            env=ENVIRON,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    deadline = time.monotonic() + 300
    while "Ctrl-C stops everything" not in output.read_text():
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.2)
    yield process, output
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_demo(tmp_path: Path) -> None:
    [block] = blocks("sh", "make demo")
    output = shell(block)
    assert re.search(r"^server: starting on free ports: [\d.]+ s$", output, re.MULTILINE)
    for name in ("ihc-box", "coins-automask"):
        features = json.loads((ROOT / "out" / "demo" / f"{name}.geojson").read_text())
        assert all(shapely.geometry.shape(f["geometry"]).is_valid for f in features)
        assert (ROOT / "out" / "demo" / f"{name}.png").stat().st_size > 100_000
    assert len(features) >= 24  # the coins


@needs_curl
def test_the_box(made_server: Any, reference_masks: Any) -> None:
    [block] = blocks("sh", '"bbox"')
    answer = shell(block)
    [feature] = json.loads(answer)
    assert shapely.geometry.shape(feature["geometry"]).is_valid
    [mask], [quality] = reference_masks("coins", [20, 30, 70, 78])
    assert same_mask(rasterise(feature["geometry"], *mask.shape), mask)
    # The README shows this answer.
    [shown] = blocks("json", '"Feature"')
    assert answer.startswith(shown.split(" … ")[0].rstrip(","))
    shown_properties = json.loads(shown[shown.index('"properties":') + 13 : -3])
    assert shown_properties.pop("quality") == round(quality, 3)
    assert shown_properties.items() <= feature["properties"].items()


@needs_curl
def test_the_form(made_server: Any, model: Any) -> None:
    [block] = blocks("sh", "point_coords")
    collection = json.loads(shell(block))
    assert collection["type"] == "FeatureCollection"
    [feature] = collection["features"]
    coin = shapely.geometry.shape(feature["geometry"])
    assert coin.is_valid
    reference = SamPredictor(model)
    reference.set_image(picture("coins"))
    points, labels = np.array([[45, 55], [5, 5]]), np.array([1, 0])
    [mask], _, _ = reference.predict(points, labels, multimask_output=False)
    assert coin.area == pytest.approx(mask.sum(), rel=0.02)


@needs_curl
def test_the_automask(made_server: Any, model: Any) -> None:
    [block] = blocks("sh", '"points_per_side": 8')
    features = json.loads(shell(block))
    reference = SamAutomaticMaskGenerator(model, points_per_side=8).generate(picture("coins"))
    assert len(features) == len(reference) > 10
    for feature, expected in zip(features, reference, strict=True):
        assert shapely.geometry.shape(feature["geometry"]).is_valid
        mask = expected["segmentation"]
        assert same_mask(rasterise(feature["geometry"], *mask.shape), mask)


def test_the_python_block(made_server: Any) -> None:
    [block] = blocks("python", "glob")
    shown = re.search(r"docs/coins.png (\d+) objects", python(block))
    assert shown
    # geopandas reads with GDAL, which QGIS uses as well.
    written = geopandas.read_file(ROOT / "out" / "objects" / "coins.geojson")
    assert len(written) == int(shown[1]) > 10
    assert written.geometry.is_valid.all()
    height, width = picture("coins").shape[:2]
    assert shapely.geometry.box(0, 0, width, height).covers(written.union_all())
    assert written["sam_model"].eq("vit_t").all()
    assert (
        written["area"].tolist()
        == written.geometry.set_crs(None, allow_override=True).area.tolist()
    )


def test_the_refinement(made_server: Any, model: Any) -> None:
    [block] = blocks("python", "mask_input")
    shown = [float(quality) for quality in python(block).split()]
    reference = SamPredictor(model)
    reference.set_image(picture("coins"))
    points, labels = np.array([[45, 55], [5, 5]]), np.array([1, 0])
    _, first, logits = reference.predict(points[:1], labels[:1], multimask_output=False)
    rounded = logits.astype(np.float16).astype(np.float32)
    _, second, _ = reference.predict(points, labels, mask_input=rounded, multimask_output=False)
    assert shown == pytest.approx([first[0], second[0]], abs=1e-3)


@needs_curl
def test_the_label_image(made_server: Any) -> None:
    [block] = blocks("sh", "label_png")
    shell(block)
    with Image.open(ROOT / "out" / "labels.png") as image:
        labels = np.asarray(image)
    assert labels.shape == picture("coins").shape[:2]
    assert labels.max() > 10


@needs_curl
def test_the_strict_request(made_server: Any) -> None:
    [block] = blocks("sh", "Prefer:")
    [shown] = blocks("json", "Did you mean")
    assert json.loads(shell(block)) == json.loads(shown)


@needs_curl
def test_the_picture_sent_ahead(made_server: Any) -> None:
    [block] = blocks("sh", "-T docs/coins.png")
    [shown] = blocks("json", '"digest"')
    answer = json.loads(shell(block))
    assert re.fullmatch("sha256:[0-9a-f]{64}", answer["digest"])
    assert {**answer, "digest": "sha256:…"} == json.loads(shown)


def test_the_scaling(made_server: Any) -> None:
    [block] = blocks("sh", "make scale")
    shown = re.findall(r"^vit_t-automask +(\d) +(\d)", shell(block), re.MULTILINE)
    assert shown == [("1", "1"), ("2", "2"), ("1", "1")]


@needs_curl
def test_the_ready_blocks_request_works_when_pasted(made_server: Any) -> None:
    _, output = made_server
    [line] = [line for line in output.read_text().splitlines() if line.startswith("curl ")]
    [feature] = json.loads(shell(line))
    disc = shapely.geometry.shape(feature["geometry"])
    assert disc.area == pytest.approx(np.pi * 16**2, rel=0.1)


def test_a_second_start_says_which_port_and_who_holds_it(made_server: Any) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "samserve_launcher", "serve"],
        cwd=ROOT,
        env=ENVIRON,
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 1
    assert "port 8000 on 127.0.0.1" in completed.stderr
    holder = re.search(r"process (\d+) holds it, .*-m samserve_gateway", completed.stderr)
    assert holder
    assert psutil.pid_exists(int(holder[1]))
    assert "--port or SAMSERVE_PORT" in completed.stderr


def test_ctrl_c_stops_every_process(made_server: Any) -> None:
    process, output = made_server
    started = psutil.Process(process.pid).children(recursive=True)
    commands = " ".join(" ".join(p.cmdline()) for p in started)
    assert all(part in commands for part in ("samserve serve", "samserve_gateway", "ModelServer"))
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.wait(timeout=60)
    _, alive = psutil.wait_procs(started, timeout=1)
    assert not alive
    assert output.read_text().rstrip().splitlines()[-1].startswith(("stopped", "make"))
    check_ports(Options())  # all free again
