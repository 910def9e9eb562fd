"""Real workers on several hosts, which are network namespaces. One host is cut off.

`python -m bench.cluster` does the same for longer, and measures times.
"""

from __future__ import annotations

import json
import math
import re
import shutil
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest
import yaml

from bench import cluster as cluster_bench
from bench.cluster import WORKERS, Cluster, clicks, wait_for
from samserve_gateway.probe import automask
from samserve_launcher import loopback
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"

pytestmark = pytest.mark.needs("ip", "dnsmasq", "haproxy", "prometheus", "redis-server", root=True)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    logs = tmp_path_factory.mktemp("cluster")
    with cluster_bench.cluster(logs) as started:
        yield started
    shutil.rmtree(logs)


def encoded(cluster: Cluster) -> int:
    """Return how many pictures the workers have encoded."""
    pages = [cluster.get(worker, 8082, "/metrics").text for worker in WORKERS]
    counts = [
        float(line.rpartition(" ")[2])
        for page in pages
        for line in page.splitlines()
        if line.startswith("samserve_embeddings_total") and 'source="encoder"' in line
    ]
    return round(sum(counts))


def test_a_picture_is_encoded_once_among_all_hosts(cluster: Cluster) -> None:
    before = encoded(cluster)
    made = clicks(cluster, seconds=5, clients=1, pictures=6)
    assert {click.status for click in made} == {200}
    assert encoded(cluster) - before == 6
    assert {click.source for click in made} <= {"memory", "machine"}


def test_every_query_has_data(cluster: Cluster) -> None:
    """A real Prometheus with deploy's configuration has data for the dashboard and the alerts."""
    with cluster.network.seen_from("clients"):
        answer = loopback.post(f"{cluster.url}/sam/automask/", 300, json=automask("vit_t"))
    assert answer.status_code == 200
    clicks(cluster, seconds=20, clients=2, pictures=6)  # long enough for some scrapes

    def ask(path: str, **params: str) -> Any:
        answer = cluster.get("prometheus", 9090, f"/api/v1/{path}?{urlencode(params)}").json()
        assert answer["status"] == "success", answer
        return answer["data"]

    dashboard = json.loads((DEPLOY / "grafana/dashboards/samserve.json").read_text())
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]

    def empty() -> set[str]:
        return {
            panel["title"]
            for panel in panels
            for target in panel["targets"]
            if not any(
                math.isfinite(float(series["value"][1]))
                for series in ask("query", query=target["expr"].replace("$__rate_interval", "1m"))[
                    "result"
                ]
            )
        }

    # A rate needs two scrapes of each target, and a target may start late.
    for _ in range(4):
        if empty() == {"GPU memory"}:
            break
        clicks(cluster, seconds=15, clients=2, pictures=6)
    assert empty() == {"GPU memory"}
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    expressions = " ".join(rule["expr"] for rule in rules)
    named = set(re.findall(r"\b(?:samserve|ts|haproxy)_\w+", expressions))
    assert len(named) > 5
    assert named <= set(ask("label/__name__/values"))
    assert ask("rules")["groups"][0]["rules"][0]["health"] == "ok"


def test_no_click_is_lost_that_a_host_accepts_but_never_reads(cluster: Cluster) -> None:
    """A worker's network fails step by step: connections are made, but no request arrives.

    A host that is cut off at once has such connections only if it is cut within a millisecond.
    """
    network, host = cluster.network, WORKERS[0]
    fails = [
        threading.Timer(4, network.narrow, (host, 400)),
        threading.Timer(5, network.cut, (host,)),
    ]
    for timer in fails:
        timer.start()
    made = clicks(cluster, seconds=16, clients=4, pictures=6)
    network.widen(host)
    network.mend(host)
    assert {click.status for click in made} == {200}
    slowest = max(click.took for click in made)
    assert slowest > 4  # or that worker had no requests
    assert slowest < 30  # or a connection is kept until the kernel gives it up
    wait_for(lambda: both_are_up(cluster))


def both_are_up(cluster: Cluster) -> bool:
    """Return whether HAProxy sends requests to both workers."""
    up = f'haproxy_backend_active_servers{{proxy="vit_t"}} {len(WORKERS)}\n'
    return up in cluster.get("haproxy", 8405, "/metrics").text


def test_no_click_is_lost_with_a_host(cluster: Cluster) -> None:
    """Four clients use two workers, and one worker's network is cut."""
    made = clicks(cluster, seconds=20, clients=4, pictures=6, cut=WORKERS[0])
    assert {click.status for click in made} == {200}
    assert sum(click.at < 10 for click in made) > 4  # or no request was under way at the cut
    # The gateway must list the other host's processes first.
    wait_for(lambda: cluster.get("gateway", 8000, "/readyz").ok)
    up = 'haproxy_backend_active_servers{proxy="vit_t"} 1\n'
    assert up in cluster.get("haproxy", 8405, "/metrics").text
