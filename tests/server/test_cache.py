"""An image is encoded once for all workers of all lanes. The workers' counters show it."""

from __future__ import annotations

import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from samserve.machine import usable_cores
from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import Options, free_ports
from samserve_launcher.server import running
from tests.support.answers import source
from tests.support.bodies import BOX, automask_body, prompt_body
from tests.support.geometry import rasterise, same_mask
from tests.support.lanes import described, embedding_counters, scale
from tests.support.sample_pictures import base64_png, new_picture, picture


def test_the_lanes_share(server: Any, door: Any) -> None:
    before = {lane: embedding_counters(server, lane) for lane in ("vit_t", "vit_t-automask")}
    first, second = new_picture(), new_picture()
    assert source(door("automask", automask_body(first))) == "encoder"
    assert source(door("prompt", prompt_body(first))) == "machine"
    assert source(door("prompt", prompt_body(first))) == "memory"
    assert source(door("prompt", prompt_body(second))) == "encoder"
    assert source(door("automask", automask_body(second))) == "machine"
    assert source(door("automask", automask_body(second))) == "memory"
    expected = Counter(encoder=1, machine=1, memory=1)
    for lane, counters in before.items():
        assert embedding_counters(server, lane) - counters == expected


def test_all_workers_share(server: Any) -> None:
    scale(server, "vit_t", "2")
    try:
        body = prompt_body(new_picture(), prompts=[{"bbox": BOX}] * 8, bbox=None)
        with ThreadPoolExecutor(12) as pool:
            answers = list(pool.map(lambda _: server.post("/sam/", body), range(24)))
        sources = Counter(map(source, answers))
        # Every request of the batch that was encoded says `encoder`.
        assert 1 <= sources["encoder"] <= 4
        # `machine` means that the second worker took it from the shared folder.
        assert sources["machine"] >= 1
        assert all(len(answer.json()) == 8 for answer in answers)
    finally:
        scale(server, "vit_t", "1")


def minor_faults(pid: int) -> int:
    """Return how many minor page faults the process has had."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[7])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="page faults are read from /proc")
def test_a_worker_keeps_its_memory(server: Any) -> None:
    """The workers have the allocator's settings, and their memory stays bounded."""
    image = new_picture()
    for _ in range(3):
        server.post("/sam/", prompt_body(image))
    [pid] = [int(worker["pid"]) for worker in described(server, "vit_t")["workers"]]
    environment = psutil.Process(pid).environ()
    assert environment["MALLOC_TRIM_THRESHOLD_"] == str(2**40)
    assert environment["OMP_WAIT_POLICY"] == "PASSIVE"
    before = minor_faults(pid)
    for _ in range(10):
        server.post("/sam/", prompt_body(image))
    # A prompt costs tens of thousands of faults if every tensor gets fresh pages.
    assert minor_faults(pid) - before < 10 * 1000
    assert psutil.Process(pid).memory_info().rss < 3 * 2**30


def test_threads_are_shared_out(server: Any) -> None:
    worker = described(server, "vit_t")["customizedMetadata"]
    assert worker["threads"] == usable_cores()
    assert worker["runtime"] == "openvino"


def test_a_folder_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reference_masks: Any
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAMSERVE_CACHE_DIRECTORY", str(tmp_path / "file" / "embeddings"))
    options = free_ports(Options())
    body = prompt_body(base64_png(picture("coins")))
    with running(options), LoopbackSession(300) as http:
        answers = [http.post(f"{options.url}/sam/", json=body) for _ in range(2)]
        log = (options.run_dir / "logs" / "torchserve.log").read_text()
    shutil.rmtree(options.run_dir)
    assert list(map(source, answers)) == ["encoder", "memory"]
    masks, _ = reference_masks("coins", BOX)
    for answer in answers:
        [feature] = answer.json()
        assert same_mask(rasterise(feature["geometry"], *masks[0].shape), masks[0])
    assert "Stored embeddings: cannot use" in log
