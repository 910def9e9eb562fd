"""Clicks on a cluster, of which one worker host is cut off in the middle: what do clients notice?

    python -m bench.cluster                     8 clients, 2 minutes
    python -m bench.cluster --no-redis          without the store that workers share

A gateway, HAProxy, Redis, Prometheus and two workers, each a host of its own (`hosts`), with the
configuration of deploy/. Prints how many requests were answered, how long they took before, during
and after, and how many of their pictures were known.
"""

from __future__ import annotations

import argparse
import io
import random
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
"""How long after the cut a request counts as one of those that may notice."""


@dataclass(frozen=True)
class Click:
    """One request and its answer.

    Attributes:
        at: seconds since the clients began.
        took: seconds.
        status: of the answer; None where there was none.
        source: where the embedding came from, as the worker says.
    """

    at: float
    took: float
    status: int | None
    source: str


class Cluster:
    """The hosts and what runs on them."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.url = f"http://{network.address('gateway')}:8000"

    def get(self, host: str, port: int, path: str) -> requests.Response:
        """As a host beside them would."""
        url = f"http://{self.network.address(host)}:{port}{path}"
        with self.network.seen_from("clients"):
            return loopback.get(url, 30)


@contextmanager
def cluster(logs: Path, *, redis: bool = True) -> Iterator[Cluster]:
    """A ready one, as compose.yaml has it; each process's output goes to a file of `logs`."""
    deploy = ROOT / "deploy"
    aliases = {name: [name] for name in ("gateway", "haproxy", "redis", "prometheus")}
    names = ("clients", *aliases, *WORKERS)
    with (
        tempfile.TemporaryDirectory(prefix="samserve-cluster-", dir="/dev/shm") as memory,
        hosts(*names, aliases={**aliases, "worker": WORKERS}) as network,
    ):

        def start(host: str, *command: str | Path, **environ: str) -> None:
            network.start(host, command, logs / f"{host}.log", environ)

        if redis:
            start("redis", "redis-server", deploy / "redis/redis.conf", "--dir", logs)
        for worker in WORKERS:
            start(
                worker,
                *(sys.executable, "-m", "samserve_launcher.worker", "--run-root", logs / worker),
                SAMSERVE_HOST="0.0.0.0",
                SAMSERVE_PORT="8090",
                # The hosts share a file system here.
                SAMSERVE_CACHE_DIRECTORY=str(Path(memory, worker)),
                SAMSERVE_REDIS_URL="redis://redis:6379/0" if redis else "",
            )
        start(
            "haproxy",
            *("haproxy", "-db", "-f", deploy / "haproxy/haproxy.cfg"),
            SAMSERVE_WORKERS_VIT_T="worker",
        )
        start(
            "gateway",
            *(sys.executable, "-m", "samserve_gateway"),
            SAMSERVE_HOST="0.0.0.0",
            SAMSERVE_INFERENCE_URL="http://haproxy:8080",
            SAMSERVE_MANAGEMENT_URL="http://haproxy:8081",
            SAMSERVE_TORCHSERVE_TOKENS="off",
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
    """What clients got who clicked for so long on so many pictures, in the order they asked.

    Every picture has been asked about before.

    Args:
        cut: a host that is cut off in the middle.
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
        _, _, told = answer.headers.get("Server-Timing", "").partition('embed;desc="')
        source = told.partition('"')[0]
    return Click(start - begun, time.monotonic() - start, status, source)


def _picture(number: int) -> str:
    """Base64 of a PNG of 512x512 pixels, half a megabyte."""
    png = io.BytesIO()
    stamped(picture([], (512, 512)), number).save(png, "PNG")
    return b64encode(png.getvalue()).decode()


def _client() -> requests.Session:
    return LoopbackSession(120)


def wait_for(true: Callable[[], bool]) -> None:
    """Raises TimeoutError if it does not get true; nobody answering is not true."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if true():
                return
        time.sleep(0.5)
    raise TimeoutError("the cluster does not get ready")


def report(made: list[Click], cut_at: float) -> str:
    """A row for each part of the time."""
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
    """Exits non-zero where namespaces are impossible, or a request was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--no-redis", action="store_true", help="no store for both workers")
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
