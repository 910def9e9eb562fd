"""Measure the requests of a cluster's clients while one of its worker hosts is cut off.

    python -m bench.cluster                     8 clients, 2 minutes
    python -m bench.cluster --no-redis          without the Redis that the workers share

The gateway, HAProxy, Redis, Prometheus and two workers run on one host each (`bench.hosts`), with
the configuration of deploy/. The report has the number of requests and answers, their times
before, during and after the cut, and the share of known pictures.
"""

from __future__ import annotations

import argparse
import io
import random
import secrets
import statistics
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import requests

from samserve_launcher import loopback
from samserve_launcher.loopback import LoopbackSession

from . import ROOT
from .hosts import Network, hosts, why_impossible
from .pictures import picture, stamped

WORKERS = ("worker1", "worker2")
START_TIMEOUT_S = 300
DURING_S = 10.0
"""A request counts as `during` until so many seconds after the cut."""


@dataclass(frozen=True)
class Click:
    """One request and its answer.

    Attributes:
        at: seconds since the clients began.
        took: seconds.
        status: the answer's; None without an answer.
        source: where the embedding came from (`encoder`, `memory`, …), as the worker says.
    """

    at: float
    took: float
    status: int | None
    source: str


class Cluster:
    """The hosts and their processes."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.url = f"http://{network.address('gateway')}:8000"

    def get(self, host: str, port: int, path: str) -> requests.Response:
        """Send a GET request from the host `clients`."""
        url = f"http://{self.network.address(host)}:{port}{path}"
        with self.network.seen_from("clients"):
            return loopback.get(url, 30)


@contextmanager
def cluster(logs: Path, *, redis: bool = True) -> Iterator[Cluster]:
    """Run a cluster as compose.yaml describes it, and yield it once it is ready.

    Each process writes its output to a file in `logs`.
    """
    deploy = ROOT / "deploy"
    aliases = {name: [name] for name in ("gateway", "haproxy", "redis", "prometheus")}
    names = ("clients", *aliases, *WORKERS)
    with (
        tempfile.TemporaryDirectory(prefix="samserve-cluster-", dir="/dev/shm") as memory,
        hosts(*names, aliases={**aliases, "worker": WORKERS}) as network,
    ):

        def start(host: str, *command: str | Path, **environ: str) -> None:
            network.start(host, command, logs / f"{host}.log", environ)

        secret = secrets.token_hex(32)
        if redis:
            start("redis", "redis-server", deploy / "redis/redis.conf", "--dir", logs)
        for worker in WORKERS:
            start(
                worker,
                *(sys.executable, "-m", "samserve_launcher", "worker", "--run-root", logs / worker),
                SAMSERVE_HOST="0.0.0.0",
                SAMSERVE_PORT="8090",
                SAMSERVE_WORKER_SECRET=secret,
                # Hosts share this machine's file system, so each needs its own folder.
                SAMSERVE_CACHE_DIRECTORY=str(Path(memory, worker)),
                SAMSERVE_REDIS_URL="redis://redis:6379/0" if redis else "",
            )
        start(
            "haproxy",
            *("haproxy", "-db", "-f", deploy / "haproxy/haproxy.cfg"),
            SAMSERVE_WORKERS_VIT_T="worker",
            SAMSERVE_WORKER_SECRET=secret,
        )
        start(
            "gateway",
            *(sys.executable, "-m", "samserve_gateway"),
            SAMSERVE_HOST="0.0.0.0",
            SAMSERVE_INFERENCE_URL="http://haproxy:8080",
            SAMSERVE_MANAGEMENT_URL="http://haproxy:8081",
            SAMSERVE_TORCHSERVE_TOKENS="off",
            SAMSERVE_OPEN="1",
            SAMSERVE_REQUESTS_AT_ONCE="0",
            SAMSERVE_REQUESTS_A_MINUTE="0",
        )
        start(
            "prometheus",
            *("prometheus", f"--config.file={deploy / 'prometheus/prometheus.yml'}"),
            f"--storage.tsdb.path={logs / 'prometheus'}",
        )
        started = Cluster(network)
        up = f'haproxy_backend_active_servers{{proxy="vit_t"}} {len(WORKERS)}\n'
        wait_for(lambda: up in started.get("haproxy", 8405, "/metrics").text)
        wait_for(lambda: started.get("gateway", 8000, "/readyz").ok)
        yield started


def clicks(
    cluster: Cluster, *, seconds: float, clients: int, pictures: int, cut: str | None = None
) -> list[Click]:
    """Let clients send boxes on known pictures, and return their requests in order of time.

    Args:
        seconds: how long the clients send.
        pictures: how many pictures they use; each is sent once before the clock starts.
        cut: a host that is cut off after half of the time.
    """
    images = [_picture(number) for number in range(pictures)]
    made: list[Click] = []

    def client(seed: int, begun: float, chosen: list[str] | None = None) -> None:
        draw = random.Random(seed)
        with cluster.network.seen_from("clients"), _client() as http:
            for image in chosen or iter(lambda: draw.choice(images), None):
                if chosen is None and time.monotonic() > begun + seconds:
                    break
                made.append(_click(http, f"{cluster.url}/sam/", image, draw, begun))

    client(0, time.monotonic(), images)
    made.clear()
    begun = time.monotonic()
    threads = [threading.Thread(target=client, args=(1 + i, begun)) for i in range(clients)]
    for thread in threads:
        thread.start()
    if cut is not None:
        time.sleep(seconds / 2)
        cluster.network.cut(cut)
    for thread in threads:
        thread.join()
    return sorted(made, key=lambda click: click.at)


def _click(
    http: requests.Session, url: str, image: str, draw: random.Random, begun: float
) -> Click:
    x, y = draw.randrange(400), draw.randrange(400)
    body = {"type": "vit_t", "bbox": [x, y, x + 80, y + 80], "b64img": image}
    start = time.monotonic()
    status, source = None, ""
    with suppress(requests.RequestException):
        answer = http.post(url, json=body)
        status = answer.status_code
        _, _, rest = answer.headers.get("Server-Timing", "").partition('embed;desc="')
        source = rest.partition('"')[0]
    return Click(start - begun, time.monotonic() - start, status, source)


def _picture(number: int) -> str:
    """Return a PNG of 512x512 pixels, half a megabyte, in base64."""
    png = io.BytesIO()
    stamped(picture([], (512, 512)), number).save(png, "PNG")
    return b64encode(png.getvalue()).decode()


def _client() -> requests.Session:
    return LoopbackSession(120)


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once `condition()` is true. A failed connection counts as false.

    Raises:
        TimeoutError: it was not true within `START_TIMEOUT_S`.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if condition():
                return
        time.sleep(0.5)
    raise TimeoutError(f"the cluster is not ready after {START_TIMEOUT_S} s")


def report(made: list[Click], cut_at: float) -> str:
    """Return a table with a row for the time before, during and after the cut."""
    parts = {
        "before": [click for click in made if click.at + click.took < cut_at],
        "during": [click for click in made if click.at < cut_at + DURING_S],
        "after": [click for click in made if click.at >= cut_at + DURING_S],
    }
    before = set(parts["before"])
    parts["during"] = [click for click in parts["during"] if click not in before]
    rows = ["        requests  answered  known     p50     p99     max  sources"]
    for name, some in parts.items():
        took = sorted(click.took for click in some)
        answered = [click for click in some if click.status == 200]
        known = sum(click.source != "encoder" for click in answered) / max(1, len(answered))
        p50, p99 = statistics.median(took), took[int(0.99 * (len(took) - 1))]
        rows.append(
            f"{name:<7} {len(some):>8}  {len(answered):>8}  {known:>5.1%}  {p50:>5.2f}s  "
            f"{p99:>5.2f}s  {took[-1]:>5.2f}s  {dict(Counter(c.source for c in answered))}"
        )
    refused = Counter(click.status for click in made if click.status != 200)
    return "\n".join([*rows, f"not answered with 200: {dict(refused) or 'none'}"])


def main() -> None:
    """Exit non-zero if this machine allows no network namespaces, or if a request was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument(
        "--no-redis", action="store_true", help="run without the Redis that the workers share"
    )
    arguments = parser.parse_args()
    reason = why_impossible()
    if reason is not None:
        sys.exit(reason)
    logs = Path(tempfile.mkdtemp(prefix="samserve-bench-cluster-"))
    print(f"logs in {logs}", flush=True)
    with cluster(logs, redis=not arguments.no_redis) as started:
        print("ready", flush=True)
        made = clicks(
            started,
            seconds=arguments.seconds,
            clients=arguments.clients,
            pictures=arguments.pictures,
            cut=WORKERS[0],
        )
        print(report(made, arguments.seconds / 2))
        page = started.get("gateway", 8000, "/metrics").text
        retries = [line for line in page.splitlines() if line.startswith("samserve_gateway_retr")]
        print(f"the gateway repeated: {retries}")
    if any(click.status != 200 for click in made):
        sys.exit("requests were lost")


if __name__ == "__main__":
    main()
