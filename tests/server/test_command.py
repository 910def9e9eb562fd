"""`samserve automask` and `samserve segment` at a real server, also when they are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from tests.support.geometry import rasterise, same_mask
from tests.support.sample_pictures import picture
from tests.support.servers import Server

COINS = picture("coins")[:, :, 0]
N_PICTURES = 20
FORMATS = {"geojson": ".geojson", "labels": ".labels.png", "overlay": ".overlay.png"}
QUICK = ("--points-per-side", "3")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with twenty pictures."""
    made = tmp_path_factory.mktemp("pictures")
    for index in range(N_PICTURES):
        part = COINS[: 150 + index, : 200 + index]
        Image.fromarray(part).save(made / f"{index:02}.png")
    return made


def begin(server: Server, *words: str) -> subprocess.Popen[str]:
    environ = {**os.environ, "SAMSERVE_URL": server.options.url}
    return subprocess.Popen(
        # A shell starts its background jobs, and so perhaps these tests, with Ctrl-C ignored.
        ["env", "--default-signal=INT", sys.executable, "-m", "samserve_launcher", *words],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(server: Server, *words: str) -> tuple[int, str, str]:
    process = begin(server, *words)
    output, errors = process.communicate(timeout=600)
    assert "Traceback" not in errors
    return process.returncode, output, errors


def wait_for(out: Path, count: int) -> None:
    deadline = time.monotonic() + 300
    while len(list(out.glob("*.geojson"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def in_whole_numbers(geometry: Any) -> dict[str, Any]:
    """Return a geometry of pixels, whose coordinates geopandas reads as floats, as GeoJSON."""
    written = json.dumps(geometry.__geo_interface__)
    found: dict[str, Any] = json.loads(written, parse_float=lambda text: int(float(text)))
    return found


def check_complete(folder: Path, out: Path) -> None:
    """Every picture has every file, and each file is whole."""
    names = sorted(path.name for path in out.iterdir())
    pictures = sorted(folder.glob("*.png"))
    assert names == sorted(p.stem + ending for p in pictures for ending in FORMATS.values())
    for source in pictures:
        height, width = np.asarray(Image.open(source)).shape
        features = json.loads((out / f"{source.stem}.geojson").read_text())["features"]
        labels = np.asarray(Image.open(out / f"{source.stem}.labels.png"))
        assert labels.shape == (height, width)
        assert labels.dtype == np.uint16
        assert labels.max() <= len(features)
        if features:
            smallest = min(range(len(features)), key=lambda i: features[i]["properties"]["area"])
            mask = rasterise(features[smallest]["geometry"], height, width)
            assert np.array_equal(labels == smallest + 1, mask)
        assert size_of(out / f"{source.stem}.overlay.png") == (width, height)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_killed_goes_on(
    server: Server, folder: Path, tmp_path: Path, end: signal.Signals
) -> None:
    words = ("automask", str(folder), "-f", ",".join(FORMATS), "-o", str(tmp_path), *QUICK)
    process = begin(server, *words)
    wait_for(tmp_path, 7)
    process.send_signal(end)
    _, errors = process.communicate(timeout=60)
    if end == signal.SIGKILL:
        assert process.returncode == -end
    else:
        assert process.returncode == 130
        assert "interrupted" in errors
        assert "The same command goes on" in errors
        assert not [path.name for path in tmp_path.iterdir() if ".part" in path.name]
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.overlay.png")}
    assert 5 <= len(done) < N_PICTURES

    status, _, errors = run(server, *words)
    assert status == 0, errors
    check_complete(folder, tmp_path)
    assert f"{N_PICTURES - len(done)} of {N_PICTURES} pictures segmented" in errors
    assert f"{len(done)} skipped" in errors
    assert all(path.stat().st_mtime_ns == written for path, written in done.items())


def test_a_bad_picture_among_good_ones(server: Server, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes((folder / "00.png").read_bytes()[:900])  # its header is good
    out = tmp_path / "out"
    words = ("automask", str(bad), str(folder / "0[0-1].png"), "-o", str(out), *QUICK, "-j", "3")
    status, _, errors = run(server, *words)
    assert status == 1
    assert "2 of 3 pictures segmented" in errors
    [line] = [line for line in errors.splitlines() if str(bad) in line]
    assert "truncated" in line
    assert sorted(path.name for path in out.iterdir()) == ["00.geojson", "01.geojson"]


def test_segment(server: Server, tmp_path: Path, reference_masks: object) -> None:
    source = str(tmp_path / "coins.png")
    Image.fromarray(COINS).save(source)
    [mask], _ = reference_masks("coins", [20, 30, 70, 78])  # type: ignore[operator]
    box = ("segment", source, "--box", "20,30,70,78")
    status, output, errors = run(server, *box)
    assert (status, errors) == (0, "")
    [feature] = json.loads(output)["features"]
    assert same_mask(rasterise(feature["geometry"], *COINS.shape), mask)

    written: dict[str, Callable[[Path], Any]] = {
        "cell.geojson": lambda path: rasterise(
            json.loads(path.read_text())["features"][0]["geometry"], *COINS.shape
        ),
        "cell.labels.png": lambda path: np.asarray(Image.open(path)) == 1,
        "cell.tif": lambda path: np.asarray(Image.open(path)) == 1,
        "cell.coco.json": lambda path: coco.decode(
            json.loads(path.read_text())["annotations"][0]["segmentation"]
        ).astype(bool),
        "cell.gpkg": lambda path: rasterise(
            in_whole_numbers(geopandas.read_file(path).geometry[0]), *COINS.shape
        ),
    }
    for name, read in written.items():
        status, output, errors = run(server, *box, "-o", str(tmp_path / name))
        assert (status, output) == (0, ""), errors
        assert same_mask(read(tmp_path / name), mask), name
    status, _, _ = run(
        server, *box, "--box", "80,30,130,78", "-f", "labels,overlay", "-o", str(tmp_path)
    )
    assert status == 0
    assert np.asarray(Image.open(tmp_path / "coins.labels.png")).max() == 2
    assert size_of(tmp_path / "coins.overlay.png") == COINS.shape[::-1]


def test_points(server: Server, tmp_path: Path) -> None:
    source = str(tmp_path / "coins.png")
    Image.fromarray(COINS).save(source)
    points = ("--point", "45,55", "--point", "5,5,0")
    status, output, errors = run(server, "segment", source, *points)
    assert status == 0, errors
    assert len(json.loads(output)["features"]) == 1
    status, output, _ = run(server, "segment", source, "--point", "45,55", "--multimask")
    assert len(json.loads(output)["features"]) == 3
    status, _, errors = run(server, "segment", source, "--point", "4500,55")
    assert (status, errors) == (
        1,
        "samserve segment: points.0: [4500.0, 55.0] lies outside the 384×303 picture.\n",
    )


def test_info(server: Server) -> None:
    status, output, _ = run(server, "info")
    assert status == 0
    assert "ready" in output.splitlines()[0]
    assert "vit_t-automask: ready, 1 worker, 0 waiting" in output


def test_without_a_server(server: Server, folder: Path, tmp_path: Path) -> None:
    """`--local` gives the same objects as the server."""
    some = str(folder / "03.png")
    words = ("automask", some, "-f", "labels", *QUICK)
    assert run(server, *words, "-o", str(tmp_path / "server"))[0] == 0
    nobody = ("--server", "http://127.0.0.1:9", "--local")
    status, _, errors = run(server, *words, *nobody, "-o", str(tmp_path / "local"))
    assert status == 0, errors
    both = [np.asarray(Image.open(tmp_path / w / "03.labels.png")) for w in ("server", "local")]
    assert same_mask(both[0] > 0, both[1] > 0)
    assert both[0].max() == both[1].max()
