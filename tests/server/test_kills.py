"""Java, the gateway, the launcher or a worker is killed while an automask runs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests

from samserve_launcher import loopback
from samserve_launcher.options import Options, free_ports
from tests.support.paths import ROOT
from tests.support.sample_pictures import new_picture
from tests.support.servers import port_flags
from tests.support.waiting import wait_for

NOTHING = {"message": "Nothing is running.", "percent": -1}


class Served:
    """`samserve serve` as a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.options = free_ports(Options())
        self.errors = folder / "stderr"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        with (folder / "stdout").open("w") as output, self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "samserve_launcher", "serve", *port_flags(self.options)],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.scratch)},
                stdout=output,
                stderr=errors,
            )
        wait_for(lambda: "is ready" in (folder / "stdout").read_text() or self.ended(), 300)
        self.everything = psutil.Process(self.process.pid).children(recursive=True)

    def ended(self) -> bool:
        return self.process.poll() is not None

    def find(self, *words: str) -> psutil.Process:
        """Return the process whose command line has all these words."""
        processes = psutil.Process(self.process.pid).children(recursive=True)
        [found] = [each for each in processes if all(w in " ".join(each.cmdline()) for w in words)]
        return found

    def worker(self, lane: str) -> psutil.Process:
        key = json.loads(self.options.key_file.read_text())["management"]["key"]
        answer = loopback.get(
            f"{self.options.management_url}/models/{lane}",
            30,
            headers={"Authorization": f"Bearer {key}"},
        )
        return psutil.Process(int(answer.json()[0]["workers"][0]["pid"]))

    def ready(self) -> bool:
        try:
            return loopback.get(f"{self.options.url}/readyz", 30).status_code == 200
        except requests.ConnectionError:
            return False

    def progress(self) -> dict[str, Any]:
        answer: dict[str, Any] = loopback.get(f"{self.options.url}/sam/progress/", 30).json()
        return answer

    def begin_automask(self, timeout_s: float = 300) -> tuple[threading.Thread, list[Any]]:
        """Begin an automask of minutes, and return once its worker computes.

        Args:
            timeout_s: the client leaves after so long.
        """
        outcome: list[Any] = []
        body = {"type": "vit_t", "points_per_side": 120, "points_per_batch": 1}
        body["b64img"] = new_picture()

        def ask() -> None:
            try:
                outcome.append(
                    loopback.post(f"{self.options.url}/sam/automask/", timeout_s, json=body)
                )
            except requests.RequestException as error:
                outcome.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        wait_for(lambda: self.progress()["percent"] >= 0)
        return thread, outcome

    def click(self) -> int:
        body = {"type": "vit_t", "bbox": [10, 10, 60, 60], "b64img": new_picture()}
        return loopback.post(f"{self.options.url}/sam/", 60, json=body).status_code

    def left(self) -> list[str]:
        """Return what is left of the server: its processes and the files of a running one."""
        alive = [p for p in self.everything if p.is_running() and p.status() != "zombie"]
        folders = (self.options.cache_dir, self.options.jobs_dir, self.options.models_dir)
        state = (self.options.run_dir / "server.json", self.options.key_file)
        files = [str(path) for path in (*folders, *state) if path.exists()]
        return [str(alive), *files] if alive or files else [str(p) for p in self.scratch.iterdir()]


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    served = Served(Path(tempfile.mkdtemp(dir="/tmp")))
    try:
        assert not served.ended(), served.errors.read_text()
        yield served
    finally:
        served.process.terminate()
        served.process.wait(60)
        shutil.rmtree(served.options.run_dir)
        shutil.rmtree(served.errors.parent)


def test_java_is_killed_and_the_server_goes_on(served: Served) -> None:
    thread, outcome = served.begin_automask()
    worker, java = served.worker("vit_t-automask"), served.find("org.pytorch.serve.ModelServer")
    gateway = served.find("samserve_gateway")
    java.kill()
    thread.join()
    [answer] = outcome
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "unavailable"
    assert int(answer.headers["Retry-After"]) > 0
    wait_for(lambda: not worker.is_running() or worker.status() == "zombie", 5)
    wait_for(served.ready, 120)
    assert served.progress() == NOTHING
    assert list(served.options.jobs_dir.iterdir()) == []
    assert served.click() == 200  # with the new TorchServe's tokens
    assert served.find("samserve_gateway") == gateway
    assert "torchserve ended with status -9 (SIGKILL)" in served.errors.read_text()


def test_the_gateway_is_killed_and_comes_back(served: Served) -> None:
    thread, outcome = served.begin_automask()
    java = served.find("org.pytorch.serve.ModelServer")
    served.find("samserve_gateway").kill()
    thread.join()
    assert isinstance(outcome[0], requests.ConnectionError)
    wait_for(served.ready, 60)
    assert served.progress() == NOTHING
    wait_for(lambda: list(served.options.jobs_dir.iterdir()) == [], 10)
    assert served.click() == 200
    assert served.find("org.pytorch.serve.ModelServer") == java


def test_a_worker_is_killed_and_its_client_leaves(served: Served) -> None:
    """The gateway repeats the automask at another worker, until the client leaves."""
    thread, outcome = served.begin_automask(timeout_s=6)
    served.worker("vit_t-automask").kill()
    thread.join()
    assert isinstance(outcome[0], requests.Timeout)
    wait_for(lambda: served.progress() == NOTHING)
    wait_for(lambda: list(served.options.jobs_dir.iterdir()) == [])
    served.process.send_signal(signal.SIGTERM)
    served.process.wait(60)
    assert served.left() == []


@pytest.mark.parametrize("guard_too", [False, True], ids=["alone", "with its guard"])
def test_the_launcher_is_killed_and_leaves_nothing(served: Served, guard_too: bool) -> None:
    thread, _ = served.begin_automask()
    if guard_too:
        served.find("samserve_launcher.guard").kill()
    served.process.kill()
    thread.join()
    if guard_too:  # the kernel and the workers themselves end the processes
        wait_for(lambda: "Process(" not in "".join(served.left()), 10)
    else:
        wait_for(lambda: served.left() == [], 10)
