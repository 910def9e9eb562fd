"""Two types on one server: four lanes, each scaled while all receive requests.

vit_t stands beside vit_b, and then beside sam2_t. These two have random weights. Unit tests compare
their masks with the references.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from samserve_gateway import probe
from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import Options, free_ports
from tests.support.lanes import lanes_of, mapped_weights, scale, scaled
from tests.support.paths import ROOT
from tests.support.sample_pictures import new_picture
from tests.support.servers import Server, running_server


@pytest.fixture(scope="module", params=["vit_b", "sam2_t"])
def other(request: pytest.FixtureRequest) -> str:
    """The type that is served beside vit_t."""
    return str(request.param)


@pytest.fixture(scope="module")
def both(
    other: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    weights: Path = request.getfixturevalue(f"{other}_weights")
    store = tmp_path_factory.mktemp("store")
    shutil.copy(ROOT / "model_store" / "vit_t.mar", store)
    command = [sys.executable, "-m", "samserve_launcher", "archive", other]
    command += ["--weights-dir", str(weights), "--model-store", str(store)]
    subprocess.run(command, cwd=ROOT, check=True)
    options = free_ports(Options(models=f"vit_t {other}", model_store=store))
    with running_server(options) as server:
        yield server
    shutil.rmtree(store)


def lanes(other: str) -> list[str]:
    return ["vit_t", "vit_t-automask", other, f"{other}-automask"]


def test_all_four_lanes_are_there(both: Server, other: str) -> None:
    assert list(lanes_of(scale(both).stdout)) == sorted(lanes(other))
    weights = both.http.get(f"{both.options.url}/sam/weights/").json()
    assert {(entry["type"], entry["name"]) for entry in weights} == {
        ("vit_t", "default"),
        (other, "default"),
    }


def test_a_box_and_a_grid(both: Server, other: str) -> None:
    """The picture is the readiness probe's, so a worker has encoded it already."""
    answer = both.post("/sam/", {**probe.prompt(other), "multimask_output": True})
    assert answer.status_code == 200
    features = answer.json()
    assert {feature["properties"]["sam_model"] for feature in features} == {other}
    assert 'embed;desc="encoder"' not in answer.headers["Server-Timing"]
    thresholds = {"pred_iou_thresh": 0, "stability_score_thresh": 0}
    grid = both.post("/sam/automask/", {**probe.automask(other), **thresholds})
    assert grid.status_code == 200
    assert {feature["properties"]["sam_model"] for feature in grid.json()} == {other}


def test_the_workers_of_a_type_map_one_file(both: Server, other: str) -> None:
    """The workers of both lanes map one file, so their weights are in memory once."""
    workers = pids(both, other, f"{other}-automask")
    mapped = [mapped_weights(pid, f"{other}.pt") for pid in workers]
    assert len(mapped) == 2
    assert len(set(mapped)) == 1


def test_both_lanes_share_an_embedding(both: Server, other: str) -> None:
    """Whoever encodes the picture first, the other lane reads it from the machine's folder."""
    request = {"type": other, "b64img": new_picture()}
    first = both.post("/sam/", {**request, "bbox": [20, 30, 70, 78]})
    assert first.status_code == 200
    assert 'embed;desc="encoder"' in first.headers["Server-Timing"]
    grid = both.post("/sam/automask/", {**request, "points_per_side": 1})
    assert grid.status_code == 200
    assert 'embed;desc="machine"' in grid.headers["Server-Timing"]


def test_the_metrics_have_the_lanes(both: Server, other: str) -> None:
    metrics = both.http.get(f"{both.options.url}/metrics").text
    for lane in lanes(other):
        assert f'lane="{lane}"' in metrics


def test_lanes_are_scaled_while_all_are_asked(both: Server, other: str) -> None:
    """Each lane is scaled 1 -> 2 -> 1, and no request is lost."""
    finished = threading.Event()
    answers: Counter[tuple[str, int]] = Counter()
    lost: list[str] = []

    def ask(path: str, body: dict[str, Any]) -> None:
        name = f"{path} {body['type']}"
        with LoopbackSession(300) as http:
            while not finished.is_set():
                answer = http.post(both.options.url + path, json=body)
                answers[name, answer.status_code] += 1
                if answer.status_code != 200:
                    lost.append(f"{name}: {answer.status_code} {answer.text}")

    requests: list[tuple[str, dict[str, Any]]] = [
        ("/sam/", probe.prompt("vit_t")),
        ("/sam/automask/", probe.automask("vit_t")),
        ("/sam/", probe.prompt(other)),
    ]
    clients = [threading.Thread(target=ask, args=request) for request in requests for _ in range(2)]
    for client in clients:
        client.start()
    try:
        for lane in lanes(other):
            assert scaled(both, lane, 2)[:2] == ["2", "2"]
        for lane in lanes(other):
            assert scaled(both, lane, 1)[:2] == ["1", "1"]
    finally:
        finished.set()
        for client in clients:
            client.join()
    assert not lost
    assert len(answers) == len(requests)
    assert min(answers.values()) > 2


def pids(server: Server, *lanes: str) -> list[int]:
    table = lanes_of(scale(server).stdout)
    return [int(pid) for lane in lanes for pid in table[lane][4:]]
