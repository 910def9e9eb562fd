"""What so many pods take of a cluster, by the requests of the manifests, and what that costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .. import ROOT

KUBERNETES = ROOT / "deploy" / "kubernetes"
HOURS_A_MONTH = 730
GIB = 2**30
PICTURE_BYTES = 4_200_000
"""An embedding in Redis (deploy/README.md, "Size")."""

REDIS_SPARE = 1.25
"""Redis itself needs a quarter more than it keeps (deploy/kubernetes/base/redis.yaml)."""

_UNITS = {"m": 1e-3, "Mi": 2**20, "Gi": 2**30}


@dataclass(frozen=True)
class Prices:
    """Prices in euros. They are examples of the order of large providers' lists: take your own.

    Attributes:
        core: of a core for an hour.
        gib: of a GiB of memory for an hour.
        gpu: of a GPU for an hour.
    """

    core: float = 0.04
    gib: float = 0.005
    gpu: float = 2.5


@dataclass(frozen=True)
class Resources:
    """What the scheduler sets aside."""

    cores: float = 0.0
    memory: float = 0.0
    gpus: int = 0

    def times(self, count: int) -> Resources:
        return Resources(count * self.cores, count * self.memory, count * self.gpus)

    def and_(self, other: Resources) -> Resources:
        return Resources(
            self.cores + other.cores, self.memory + other.memory, self.gpus + other.gpus
        )

    def euros_a_month(self, prices: Prices) -> float:
        an_hour = self.cores * prices.core + self.gpus * prices.gpu
        return HOURS_A_MONTH * (an_hour + self.memory / GIB * prices.gib)


def redis_bytes(pictures: int) -> float:
    """Return the memory of a Redis that keeps so many pictures; at least that of the manifest."""
    return max(_base("redis").memory, REDIS_SPARE * pictures * PICTURE_BYTES)


def cluster(figures_name: str, workers: int, pictures: int) -> Resources:
    """Return what the whole cluster takes: gateways, HAProxys, Redis and so many workers."""
    whole = worker(figures_name).times(workers)
    for name in ("gateway", "haproxy"):
        whole = whole.and_(_base(name))
    return whole.and_(Resources(_base("redis").cores, redis_bytes(pictures)))


def worker(figures_name: str) -> Resources:
    """Return what one worker pod takes."""
    manifest = KUBERNETES / "worker" / "worker.yaml"
    requests, limits = _requests_and_limits(_document(manifest, "Deployment", "worker"))
    patches = {
        "vit_t": None,
        "vit_h-gpu": KUBERNETES / "overlays" / "gpu" / "kustomization.yaml",
    }
    large = KUBERNETES / "components" / "large-worker" / "kustomization.yaml"
    if patch := patches.get(figures_name, large):
        for text in _patches(patch):
            more_requests, more_limits = _requests_and_limits(yaml.safe_load(text))
            requests, limits = requests | more_requests, limits | more_limits
    gpus = int(limits.get("nvidia.com/gpu", 0))
    return Resources(_quantity(requests["cpu"]), _quantity(requests["memory"]), gpus)


def _base(name: str) -> Resources:
    """Return what the fewest replicas of a Deployment of the base take together."""
    manifest = KUBERNETES / "base" / f"{name}.yaml"
    deployment = _document(manifest, "Deployment", name)
    requests, _ = _requests_and_limits(deployment)
    one = Resources(_quantity(requests["cpu"]), _quantity(requests["memory"]))
    if "replicas" in deployment["spec"]:
        return one.times(int(deployment["spec"]["replicas"]))
    return one.times(int(_document(manifest, "HorizontalPodAutoscaler", name)["spec"]["minReplicas"]))


def _document(manifest: Path, kind: str, name: str) -> dict[str, Any]:
    documents: Iterator[dict[str, Any]] = yaml.safe_load_all(manifest.read_text())
    return next(
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"] == name
    )


def _patches(kustomization: Path) -> Iterator[str]:
    """Yield the patches that set resources of a worker's container."""
    for patch in yaml.safe_load(kustomization.read_text())["patches"]:
        if "containers:" in patch["patch"] and "resources:" in patch["patch"]:
            yield patch["patch"]


def _requests_and_limits(deployment: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """Return those of the first container."""
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    resources = container.get("resources", {})
    return resources.get("requests", {}), resources.get("limits", {})


def _quantity(text: str) -> float:
    """Return a quantity of Kubernetes, such as `200m` or `7Gi`, as cores or bytes."""
    for unit, factor in _UNITS.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
