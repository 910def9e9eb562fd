"""HAProxy with deploy/haproxy/haproxy.cfg, in front of three hosts that are network namespaces.

The workers are stand-ins without a model, so that every answer depends on HAProxy alone.
`test_hosts` has real workers.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import requests

from bench.hosts import Network, hosts
from samserve_launcher.loopback import LoopbackSession
from tests.support.paths import ROOT

CONFIG = ROOT / "deploy/haproxy/haproxy.cfg"
WORKERS = ("worker1", "worker2", "worker3")
NAMES = {"worker.samserve": WORKERS, "other.samserve": WORKERS[:1]}
SECRET = "s3cret-" * 6
TYPES = {"VIT_T": "worker", "VIT_B": "other", "DOMAIN": ".samserve"}

PATHS = {8080: "/predictions/vit_t", 8081: "/models/vit_t"}

pytestmark = pytest.mark.needs("ip", "dnsmasq", "haproxy", root=True)


class Cluster:
    """HAProxy and three stand-ins. Requests come from a host of their own, `client`."""

    def __init__(self, network: Network, http: LoopbackSession) -> None:
        self.network = network
        self._http = http

    def ask(
        self, method: str, port: int, path: str, *, host: str = "haproxy", **request: Any
    ) -> requests.Response:
        url = f"http://{self.network.address(host)}:{port}{path}"
        with self.network.seen_from("client"):
            return self._http.request(method, url, **request)

    def predict(
        self, picture: int | None, *, seconds: float = 0, padding: int = 0, lane: str = "vit_t"
    ) -> requests.Response:
        headers = {}
        if picture is not None:
            headers["X-Image-Digest"] = hashlib.sha256(str(picture).encode()).hexdigest()
        body = {"seconds": seconds, "padding": "-" * padding}
        return self.ask("POST", 8080, f"/predictions/{lane}", headers=headers, json=body)

    def worker_of(self, picture: int | None) -> str:
        answer = self.predict(picture)
        assert answer.status_code == 200, answer.text
        name: str = answer.json()["name"]
        return name

    def picture_of(self, worker: str) -> int:
        """Return the number of a picture whose requests HAProxy sends to this worker."""
        return next(picture for picture in range(1000) if self.worker_of(picture) == worker)

    def tell(self, worker: str, **state: object) -> None:
        _until(lambda: self.ask("POST", 8090, "/state", host=worker, json=state).ok)

    def asked(self, worker: str) -> int:
        """Return how many predictions the worker has been asked for."""
        return len(self.ask("GET", 8090, "/seen", host=worker).json())

    def wait_for(self, up: int, model_type: str = "vit_t") -> None:
        """Return once HAProxy counts so many workers of a model type as up, for both APIs."""
        lines = [
            f'haproxy_backend_active_servers{{proxy="{proxy}"}} {up}\n'
            for proxy in (model_type, f"{model_type}-management")
        ]

        def counted() -> bool:
            page = self.ask("GET", 8405, "/metrics").text
            return all(line in page for line in lines)

        _until(counted)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):  # the process may still be starting
            if condition():
                return
        time.sleep(0.1)
    pytest.fail("not so after 30 s")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    logs = tmp_path_factory.mktemp("logs")
    with (
        hosts("haproxy", "client", *WORKERS, aliases=NAMES) as network,
        LoopbackSession(30) as http,
    ):
        for worker in WORKERS:
            network.start(
                worker, [sys.executable, "-m", "tests.support.stand_in", worker], logs / worker
            )
        environ = {f"SAMSERVE_WORKERS_{model_type}": name for model_type, name in TYPES.items()}
        environ["SAMSERVE_WORKER_SECRET"] = SECRET
        network.start("haproxy", ["haproxy", "-db", "-f", CONFIG], logs / "haproxy", environ)
        yield Cluster(network, http)


@pytest.fixture
def cluster(started: Cluster) -> Cluster:
    """The cluster with all three workers up, whatever the last test did to them."""
    for worker in WORKERS:
        started.network.mend(worker)
        started.tell(worker, ready=True, full=False, secret=None)
    started.wait_for(3)
    started.wait_for(1, "vit_b")
    return started


def test_a_pictures_requests_go_to_one_worker(cluster: Cluster) -> None:
    owners = {picture: cluster.worker_of(picture) for picture in range(60)}
    assert {picture: cluster.worker_of(picture) for picture in owners} == owners
    shares = Counter(owners.values())
    assert set(shares) == set(WORKERS)
    assert max(shares.values()) < 40
    # Requests without a picture go to the workers in turn.
    assert {cluster.worker_of(None) for _ in range(6)} == set(WORKERS)


def test_a_worker_that_leaves_takes_only_its_own_pictures_away(cluster: Cluster) -> None:
    owners = {picture: cluster.worker_of(picture) for picture in range(60)}
    cluster.tell("worker1", ready=False)
    cluster.wait_for(2)
    without = {picture: cluster.worker_of(picture) for picture in owners}
    assert "worker1" not in without.values()
    for picture, owner in owners.items():
        assert owner in ("worker1", without[picture])
    cluster.tell("worker1", ready=True)
    cluster.wait_for(3)
    assert {picture: cluster.worker_of(picture) for picture in owners} == owners


def test_what_a_leaving_worker_has_begun_it_ends(cluster: Cluster) -> None:
    picture = cluster.picture_of("worker2")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(cluster.predict, picture, seconds=6)
        time.sleep(1)
        cluster.tell("worker2", ready=False)
        cluster.wait_for(2)
        assert answer.result().json() == {"name": "worker2"}


def test_a_full_worker_is_passed_over(cluster: Cluster) -> None:
    picture = cluster.picture_of("worker3")
    cluster.tell("worker3", full=True)
    before = cluster.asked("worker3")
    assert cluster.worker_of(picture) != "worker3"
    assert cluster.asked("worker3") == before + 1


def test_clients_of_one_picture_are_spread_when_they_are_many(cluster: Cluster) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = pool.map(lambda _: cluster.predict(7, seconds=1).json()["name"], range(8))
        shares = Counter(answers)
    assert len(shares) > 1
    assert shares[cluster.worker_of(7)] == max(shares.values())


@pytest.mark.parametrize("padding", [0, 2**20], ids=["a digest", "a picture"])
def test_a_host_cut_off_while_it_works(cluster: Cluster, padding: int) -> None:
    """HAProxy repeats small requests. The gateway repeats the others after HAProxy's 502."""
    picture = cluster.picture_of("worker1")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(cluster.predict, picture, seconds=10, padding=padding)
        time.sleep(1)
        cluster.network.cut("worker1")
        if padding:
            # On a reused connection HAProxy may hang up without an answer.
            with suppress(requests.ConnectionError):
                assert answer.result().status_code == 502
        else:
            assert answer.result().json()["name"] in ("worker2", "worker3")
    cluster.wait_for(2)
    assert cluster.worker_of(picture) != "worker1"


def test_no_worker_at_all(cluster: Cluster) -> None:
    for worker in WORKERS:
        cluster.tell(worker, ready=False)
    cluster.wait_for(0)
    answer = cluster.predict(1)
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    with pytest.raises(json.JSONDecodeError):  # the gateway repeats a request whose 503 is not JSON
        answer.json()


def test_management_is_for_reading(cluster: Cluster) -> None:
    lanes = ["/models/vit_t?customized=true", "/models/vit_t-automask"]
    answers = [cluster.ask("GET", 8081, path) for path in lanes for _ in range(5)]
    assert [answer.json()["path"] for answer in answers] == [
        path for path in lanes for _ in "12345"
    ]
    # The gateway tells workers apart by process id, so one host must answer every time.
    assert len({answer.json()["name"] for answer in answers[:5]}) == 1
    assert cluster.ask("GET", 8081, "/models?limit=100&type=vit_t").status_code == 200
    assert cluster.ask("PUT", 8081, "/models/vit_t?min_worker=0").status_code == 405
    assert cluster.ask("DELETE", 8081, "/models/vit_t").status_code == 405


@pytest.mark.parametrize("sent", [None, "wrong"])
def test_the_workers_get_the_secret(cluster: Cluster, sent: str | None) -> None:
    headers = {} if sent is None else {"X-Samserve-Secret": sent}
    for port in (8080, 8081):
        answer = cluster.ask("GET", port, PATHS[port], headers=headers)
        assert answer.json()["secrets"] == [SECRET]


def test_a_worker_with_another_secret_gets_no_requests(cluster: Cluster) -> None:
    """As while the secret is changed: it is ready, but would answer 403 to each request."""
    picture = cluster.picture_of("worker1")
    for worker in WORKERS:
        cluster.tell(worker, secret=SECRET)
    cluster.tell("worker1", secret="another")
    cluster.wait_for(2)
    assert cluster.worker_of(picture) in ("worker2", "worker3")
    paths = [f"/models/vit_t?{number}" for number in range(20)]
    assert {cluster.ask("GET", 8081, path).status_code for path in paths} == {200}
    cluster.tell("worker1", secret=SECRET)
    cluster.wait_for(3)
    assert cluster.worker_of(picture) == "worker1"


def test_each_type_has_its_own_workers(cluster: Cluster) -> None:
    other = [cluster.predict(picture, lane="vit_b-automask").json() for picture in range(9)]
    other += [cluster.ask("GET", 8081, "/models/vit_b").json()]
    other += [cluster.ask("GET", 8081, "/models?limit=100&type=vit_b").json()]
    assert {answer["name"] for answer in other} == {"worker1"}


def test_what_nobody_serves(cluster: Cluster) -> None:
    """HAProxy answers like TorchServe, and the gateway turns it into a list of loaded types."""
    for answer in (
        cluster.predict(1, lane="vit_l"),
        cluster.ask("GET", 8081, "/models/vit_h"),
        cluster.ask("GET", 8080, "/ping"),
    ):
        assert answer.status_code == 404
        assert answer.json()["type"] == "ModelNotFoundException"
