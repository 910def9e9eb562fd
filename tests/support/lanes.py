"""Lanes of a running server: their workers, counters and scale."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.paths import ROOT
from tests.support.servers import Server
from tests.support.waiting import wait_for


def described(server: Server, lane: str) -> Any:
    """Return TorchServe's description of a lane, with the one worker's description of itself."""
    url = f"{server.options.management_url}/models/{lane}?customized=true"
    return server.http.get(url, headers=server.authorization("management")).json()[0]


def embedding_counters(server: Server, lane: str) -> Counter[str]:
    """Return how many embeddings the worker has had from each source."""
    return Counter(described(server, lane)["customizedMetadata"]["embeddings"])


def workers_of(server: Server, lane: str) -> list[dict[str, Any]]:
    """Return TorchServe's description of each worker of a lane."""
    url = f"{server.options.management_url}/models/{lane}"
    lanes = server.http.get(url, headers=server.authorization("management")).json()
    workers: list[dict[str, Any]] = lanes[0]["workers"]
    return workers


def pids_of(server: Server, lane: str) -> list[int]:
    """Return the process ids of a lane's workers."""
    return [int(worker["pid"]) for worker in workers_of(server, lane)]


def scale(server: Server, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `samserve scale` with these arguments for this server."""
    command = [sys.executable, "-m", "samserve_launcher", "scale", *arguments]
    command += ["--port", str(server.options.port)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def scaled(server: Server, lane: str, workers: int) -> list[str]:
    """Scale a lane to so many workers and return its row of the table."""
    completed = scale(server, lane, str(workers))
    assert completed.returncode == 0, completed.stderr
    return lanes_of(completed.stdout)[lane]


def lanes_of(table: str) -> dict[str, list[str]]:
    """Return lane -> the other columns of the table that `samserve scale` prints."""
    header, *rows = (line.split() for line in table.splitlines())
    assert header == ["LANE", "WORKERS", "READY", "BATCH", "WAITING", "PIDS"]
    return {row[0]: row[1:] for row in rows}


def mapped_weights(pid: int, name: str) -> str:
    """Return the device and inode of the file of this name that a process has mapped."""
    maps = Path(f"/proc/{pid}/maps")
    if not maps.exists():
        pytest.skip("this system does not list the files that a process maps")
    lines = [line.split() for line in maps.read_text().splitlines() if line.endswith(f"/{name}")]
    [file] = {(device, inode) for _, _, _, device, inode, _ in lines}
    return " ".join(file)


def forget_everything(server: Server) -> None:
    """Replace the prompt worker by a new one, and empty the machine's folder of embeddings."""
    [old] = pids_of(server, "vit_t")
    psutil.Process(old).kill()
    for stored in server.options.cache_dir.rglob("*"):
        if stored.is_file():
            stored.unlink()

    def replaced() -> bool:
        ready = server.http.get(f"{server.options.url}/readyz").status_code == 200
        workers = workers_of(server, "vit_t")
        pids = [int(worker["pid"]) for worker in workers if worker["status"] == "READY"]
        return ready and bool(pids) and pids != [old]

    wait_for(replaced, timeout_s=120)
