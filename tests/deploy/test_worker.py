"""`samserve worker`: TorchServe alone, as a container runs it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil
import pytest
import requests

from samserve_launcher import loopback
from samserve_launcher.configuration import configuration, read_properties
from samserve_launcher.door import SECRET
from samserve_launcher.options import Options, free_ports
from tests.support.bodies import automask_body, prompt_body
from tests.support.paths import ROOT
from tests.support.sample_pictures import new_picture
from tests.support.servers import port_flags
from tests.support.waiting import wait_for

GOOD = "s3cret-" * 6
WITH_SECRET = {"X-Samserve-Secret": GOOD}

Worker = tuple[Options, "subprocess.Popen[bytes]"]


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    options = replace(free_ports(Options()), run_root=tmp_path)
    command = [
        sys.executable,
        "-m",
        "samserve_launcher",
        "worker",
        *port_flags(options),
        f"--run-root={tmp_path}",
    ]
    process = subprocess.Popen(command, cwd=ROOT, env={**os.environ, SECRET: GOOD})
    yield options, process
    if process.poll() is None:
        process.terminate()
        process.wait(timeout=60)
    shutil.rmtree(options.cache_dir, ignore_errors=True)


def get(options: Options, path: str) -> int:
    """Return the status of the worker's readiness server, or 0 if it does not answer."""
    try:
        return loopback.get(f"{options.url}{path}", 30).status_code
    except requests.RequestException:
        return 0


def test_a_worker_from_start_to_drained(worker: Worker) -> None:
    options, process = worker
    deadline = time.monotonic() + 300
    states = []
    while (state := get(options, "/readyz")) != 200:
        states.append(state)
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert 503 in states  # it answers before it is ready
    assert get(options, "/healthz") == 200
    started = psutil.Process(process.pid).children(recursive=True)
    assert started
    only_with_the_secret(options)
    knows_it = {child.name() for child in started if GOOD in child.environ().values()}
    assert knows_it == {"haproxy"}

    def automask() -> requests.Response:
        """Ask for some seconds of work, without a token."""
        url = f"{options.inference_url}/predictions/vit_t-automask"
        body = {**automask_body(new_picture()), "points_per_side": 24}
        return loopback.post(url, 300, json=body, headers=WITH_SECRET)

    with ThreadPoolExecutor() as pool:
        answer = pool.submit(automask)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        while get(options, "/readyz") == 200:
            assert time.monotonic() < deadline
        assert get(options, "/healthz") == 200  # or Kubernetes would kill it while it drains
        assert not answer.done()
        assert answer.result().status_code == 200
    assert process.wait(timeout=60) == 0
    _, alive = psutil.wait_procs(started, timeout=1)
    assert not alive
    assert {path.name for path in options.run_dir.iterdir()} == {"config.properties", "logs"}


def only_with_the_secret(options: Options) -> None:
    """Ask each API without the secret, with a wrong one, and with the right one."""
    body = prompt_body(new_picture(), bbox=[20, 30, 70, 78])
    urls: dict[str, Callable[..., requests.Response]] = {
        f"{options.inference_url}/ping": loopback.get,
        f"{options.management_url}/models": loopback.get,
        f"{options.inference_url}/predictions/vit_t": partial(loopback.post, json=body),
    }
    for url, ask in urls.items():
        for headers in ({}, {"X-Samserve-Secret": GOOD[:-1] + "x"}):
            assert ask(url, 30, headers=headers).status_code == 403, url
        assert ask(url, 30, headers=WITH_SECRET).status_code == 200, url
    assert loopback.get(f"{options.metrics_url}/metrics", 30).status_code == 200
    for path in ("/", "/metrics/x", "/models"):
        assert loopback.get(options.metrics_url + path, 30).status_code == 403


@pytest.mark.parametrize("secret", [None, "", "short"])
def test_no_start_without_a_secret(secret: str | None, tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != SECRET}
    environ |= {} if secret is None else {SECRET: secret}
    command = [sys.executable, "-m", "samserve_launcher", "worker", f"--run-root={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert SECRET in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["haproxy", "java"])
def test_a_worker_ends_with_its_processes(worker: Worker, name: str) -> None:
    _, process = worker

    def found() -> list[psutil.Process]:
        children = psutil.Process(process.pid).children(recursive=True)
        return [child for child in children if child.name() == name]

    wait_for(found)
    found()[0].kill()
    assert process.wait(timeout=60) == 1


def test_only_a_worker_is_open(tmp_path: Path) -> None:
    """`make serve` keeps its tokens and listens on loopback, whatever address its gateway has."""
    options = Options(host="0.0.0.0")
    alone = read_properties(configuration(options))
    assert alone["disable_token_authorization"] == "false"
    assert alone["management_address"] == "http://127.0.0.1:8081"
    behind = read_properties(configuration(options, worker_host=options.host))
    assert behind["disable_token_authorization"] == "true"
    for api in ("inference", "management", "metrics"):
        assert behind[f"{api}_address"].startswith("http://0.0.0.0:")
    assert behind["enable_model_api"] == "false"
