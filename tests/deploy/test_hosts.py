"""Several machines without a cluster: real workers on hosts of their own, one of which is cut off.

`python -m scripts.bench_cluster` is the same for longer, and tells times.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from scripts import bench_cluster
from scripts.bench_cluster import WORKERS, Cluster, clicks, wait_for
from scripts.hosts import why_impossible

pytestmark = pytest.mark.skipif(bool(why_impossible()), reason=str(why_impossible()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    logs = tmp_path_factory.mktemp("cluster")
    with bench_cluster.cluster(logs) as started:
        yield started
    shutil.rmtree(logs)


def encoded(cluster: Cluster) -> int:
    """Pictures that any worker has run through its encoder."""
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


def test_no_click_is_lost_with_a_host(cluster: Cluster) -> None:
    """Two workers; the cable of one is pulled under four clients."""
    made = clicks(cluster, seconds=20, clients=4, pictures=6, cut=WORKERS[0])
    assert {click.status for click in made} == {200}
    assert sum(click.at < 10 for click in made) > 4  # else nothing was under way
    # It has to hear of the other host's processes first.
    wait_for(lambda: cluster.get("gateway", 8000, "/readyz").is_success)
    up = 'haproxy_backend_active_servers{proxy="vit_t"} 1\n'
    assert up in cluster.get("haproxy", 8405, "/metrics").text
