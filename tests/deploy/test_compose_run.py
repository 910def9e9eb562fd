"""deploy/compose.yaml in podman: images are built, everything runs without a route to the internet.

Images are built with the network of this machine. What comes then happens in a network namespace
without routes, as on a machine that is cut off. `--whole-images` builds the worker's image with all
its packages, which takes minutes and 20 GB. Without it, the image gets them from .venv.

podman starts no health checks where systemd does not run, so the tests ask for each of them.
"""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from bench.hosts import hosts
from samserve_launcher.loopback import LoopbackSession
from tests.support.paths import ROOT
from tests.support.podman import BASE, Podman, PodmanError, prepared_podman
from tests.support.tools import unavailable
from tests.support.waiting import wait_for

pytestmark = pytest.mark.needs(
    *("podman", "runc", "iptables", "debootstrap", "ip", "dnsmasq"), root=True
)

URL = "http://127.0.0.1:8000"
SERVICES = ("worker", "haproxy", "gateway", "redis", "prometheus")
"""All but `archives`, which ends, and Grafana, of which no image can be made here."""

COINS = base64.b64encode((ROOT / "docs/coins.png").read_bytes()).decode()
BOX = {"type": "vit_t", "bbox": [20, 30, 70, 78], "b64img": COINS}
"""The request of the README."""


@pytest.fixture(scope="module")
def stack(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Podman]:
    """All services, and this thread in a network without routes."""
    folder, whole = tmp_path_factory.mktemp("compose"), pytestconfig.getoption("--whole-images")
    with prepared_podman(folder, whole=whole) as podman:
        version = podman.run("run", "--rm", "--network", "none", BASE, "python3", "--version")
        if version.rpartition(".")[0] != "Python " + ".".join(map(str, sys.version_info[:2])):
            unavailable(f"the base image has {version}; the packages of .venv are for another")
        podman.compose("build")
        subprocess.run(["sh", str(podman.folder / "deploy/docker/make-secrets.sh")], check=True)
        with hosts("compose", aliases={}) as network, network.seen_from("compose"):
            try:
                podman.compose("run", "--rm", "archives")
                up(podman)
                wait_for(lambda: answers("/readyz"), 180)
                yield podman
            finally:
                podman.write_logs()
                podman.remove_everything()


def up(podman: Podman, *options: str) -> None:
    """Start the services, without a word to podman that the worker depends on `archives`.

    podman starts no container again that depends on one that does not run.
    """
    podman.compose("up", "-d", "--no-build", "--no-deps", *options, *SERVICES)


def answers(path: str) -> bool:
    """Return whether the gateway answers this path with 200. This takes half a second at least."""
    time.sleep(0.5)
    try:
        with LoopbackSession(30) as http:
            return http.get(URL + path).status_code == 200
    except requests.ConnectionError:
        return False


def name_of(service: str, number: int = 1) -> str:
    return f"samserve-test_{service}_{number}"


def workers_up(podman: Podman) -> int:
    """Return how many workers HAProxy sends requests to. This takes half a second at least."""
    time.sleep(0.5)
    page = inside(podman, "gateway", "http://haproxy:8405/metrics")[1]
    [count] = re.findall(r'^haproxy_backend_active_servers{proxy="vit_t"} (\d+)$', page, re.M)
    return int(count)


def inside(podman: Podman, service: str, url: str) -> tuple[int, str]:
    """Send a GET from a container. Return status and text; the status is 0 without an answer."""
    code = (
        "import sys, urllib.error, urllib.request\n"
        "try:\n    answer = urllib.request.urlopen(sys.argv[1], timeout=5)\n"
        "except urllib.error.HTTPError as exc:\n    answer = exc\n"
        "except OSError as exc:\n    print(0, exc); sys.exit()\n"
        "print(answer.status, answer.read().decode())"
    )
    # The stand-ins have Python, too: they are made from the base image.
    text = podman.run("exec", name_of(service), "python3", "-c", code, url)
    status, _, rest = text.partition(" ")
    return int(status), rest


@contextmanager
def traffic() -> Iterator[Counter[str]]:
    """Count what a client gets that sends clicks all the time, one after another."""
    counted: Counter[str] = Counter()
    ended = threading.Event()

    def send() -> None:
        while not ended.is_set():
            try:
                with LoopbackSession(60) as http:
                    counted[str(http.post(f"{URL}/sam/", json=BOX).status_code)] += 1
            except requests.ConnectionError:
                counted["refused"] += 1
            time.sleep(0.05)

    client = threading.Thread(target=send)
    client.start()
    try:
        time.sleep(1)
        yield counted
        time.sleep(1)
    finally:
        ended.set()
        client.join()


def test_every_service_runs_and_is_healthy(stack: Podman) -> None:
    containers = stack.containers()
    assert set(containers) == {name_of(service) for service in SERVICES}
    for name, container in containers.items():
        assert container["State"]["Status"] == "running", name
        assert container["HostConfig"]["ReadonlyRootfs"], name
        assert container["EffectiveCaps"] in (None, []), name
        assert container["HostConfig"]["Memory"] > 0, name
        assert container["HostConfig"]["LogConfig"]["Size"] != "0B", name
        wait_for(lambda name=name: healthy(stack, name))  # type: ignore[misc]


def healthy(podman: Podman, name: str) -> bool:
    """Run the health check of a container. It fails where there is none."""
    try:
        podman.run("healthcheck", "run", name)
    except PodmanError as exc:
        if exc.status != 1:  # unhealthy
            raise
        return False
    return True


def test_the_requests_of_the_readme(stack: Podman) -> None:
    with LoopbackSession(120) as http:
        [coin] = http.post(f"{URL}/sam/", json=BOX).json()
        assert coin["properties"]["sam_model"] == "vit_t"
        assert coin["properties"]["quality"] > 0.9
        every = {"type": "vit_t", "b64img": COINS, "points_per_side": 8}
        answer = http.post(f"{URL}/sam/automask/?stream=1", json=every)
    events = Counter(json.loads(line)["event"] for line in answer.text.splitlines())
    assert events["progress"] > 0
    assert events["feature"] > 5
    assert events["done"] == 1


def test_prometheus_reaches_every_target(stack: Podman) -> None:
    def states() -> Counter[tuple[str, str]]:
        text = inside(stack, "prometheus", "http://127.0.0.1:9090/api/v1/targets")[1]
        targets: list[dict[str, Any]] = json.loads(text)["data"]["activeTargets"]
        return Counter((target["labels"]["job"], target["health"]) for target in targets)

    wait_for(lambda: states() == {(j, "up"): 1 for j in ("worker", "gateway", "haproxy")})


def test_embeddings_are_in_redis_and_need_its_password(stack: Podman) -> None:
    with LoopbackSession(120) as http:
        assert http.post(f"{URL}/sam/", json=BOX).status_code == 200
    redis = name_of("redis")
    ask = 'REDISCLI_AUTH="$REDIS_PASSWORD" redis-cli dbsize'
    wait_for(lambda: int(stack.run("exec", redis, "sh", "-c", ask)) > 0)
    assert "NOAUTH" in stack.run("exec", redis, "redis-cli", "dbsize")


@pytest.mark.parametrize(
    ("service", "url", "status"),
    [
        ("prometheus", "http://worker:8080/ping", 403),  # one network, but no secret
        ("prometheus", "http://worker:8081/models", 403),
        ("redis", "http://worker:8081/models", 403),
        ("redis", "http://haproxy:8081/models/vit_t", 0),
        ("redis", "http://gateway:8000/healthz", 0),
        ("gateway", "http://worker:8081/models", 0),
        ("gateway", "http://redis:6379/", 0),
        ("gateway", "http://haproxy:8081/models/vit_t", 200),
        ("worker", "http://gateway:8000/healthz", 0),
        ("worker", "http://prometheus:9090/-/healthy", 200),
    ],
)
def test_who_reaches_whom(stack: Podman, service: str, url: str, status: int) -> None:
    assert inside(stack, service, url)[0] == status


def test_ended_processes_leave_the_table_of_processes(stack: Podman) -> None:
    """The launcher is the first process of the worker's container, and inherits orphans."""

    def of_the_worker(what: str) -> list[str]:
        rows = stack.run("top", name_of("worker"), "hpid", "state", "args").splitlines()
        return [row.split()[0] for row in rows if what in row]

    [victim, *_] = of_the_worker("model_service_worker.py")
    os.kill(int(victim), signal.SIGKILL)  # its decoders of pictures end after it
    wait_for(lambda: victim not in of_the_worker(""))
    time.sleep(3)
    assert of_the_worker(" Z ") == []
    wait_for(lambda: answers("/readyz"))


@pytest.mark.parametrize("service", ["redis", "prometheus"])
def test_no_click_is_lost_without_a_service_that_only_helps(stack: Podman, service: str) -> None:
    with traffic() as counted:
        stack.run("restart", name_of(service))
    assert set(counted) == {"200"}
    wait_for(lambda: healthy(stack, name_of(service)))


@pytest.mark.parametrize("service", ["worker", "haproxy", "gateway"])
def test_the_only_one_of_its_kind_comes_back(stack: Podman, service: str) -> None:
    """Clients get 503, or no connection if it is the gateway; then they get answers again."""
    with traffic() as counted:
        stack.run("restart", name_of(service))
        before = counted["200"]
        wait_for(lambda: counted["200"] > before, 120)
    failed = {"worker": {"503"}, "haproxy": {"503"}, "gateway": {"refused"}}
    assert set(counted) <= {"200"} | failed[service]


def two_workers(podman: Podman) -> None:
    up(podman, "--no-recreate", "--scale", "worker=2")
    wait_for(lambda: workers_up(podman) == 2, 120)


def kill(podman: Podman) -> None:
    """End the first process of a worker's container, as a machine without memory does."""
    container = podman.containers()[name_of("worker")]
    os.kill(container["State"]["Pid"], signal.SIGKILL)
    wait_for(lambda: podman.containers()[name_of("worker")]["RestartCount"] == 1)


def restart(podman: Podman) -> None:
    """End the other worker in good order, which takes five seconds at least, and start it again."""
    threading.Thread(target=podman.run, args=("restart", name_of("worker", 2))).start()


@pytest.mark.parametrize("change", [two_workers, kill, restart])
def test_no_click_is_lost_with_one_of_two_workers(
    stack: Podman, change: Callable[[Podman], None]
) -> None:
    if change is not two_workers:
        two_workers(stack)
    with traffic() as counted:
        change(stack)
        if change is not two_workers:
            wait_for(lambda: workers_up(stack) == 1)
        wait_for(lambda: workers_up(stack) == 2, 120)
    assert set(counted) == {"200"}


def test_everything_goes(stack: Podman) -> None:
    stack.write_logs()
    # podman-compose knows one worker only.
    stack.run("rm", "-f", "-t", "60", name_of("worker", 2))
    stack.compose("down", "-v")
    assert stack.containers() == {}
    for kind in ("network", "volume"):
        names = stack.run(kind, "ls", "--format", "{{.Name}}").split()
        assert [name for name in names if name.startswith("samserve-test")] == []
