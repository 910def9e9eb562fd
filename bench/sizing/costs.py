"""What so many pods take of a cluster, by the requests of the manifests, and what that costs."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
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
    """What containers ask of the scheduler, and the most memory that they may take.

    Memory is in bytes.
    """

    cores: float = 0.0
    memory: float = 0.0
    memory_limit: float = 0.0
    gpus: float = 0.0

    def __add__(self, other: Resources) -> Resources:
        return Resources(*map(operator.add, astuple(self), astuple(other)))

    def __mul__(self, count: int) -> Resources:
        return Resources(*(count * amount for amount in astuple(self)))

    def euros_a_month(self, prices: Prices) -> float:
        memory = self.memory / GIB * prices.gib
        return HOURS_A_MONTH * (self.cores * prices.core + memory + self.gpus * prices.gpu)


def cluster(model: str, workers: int, pictures: int) -> Resources:
    """Return what the whole cluster takes: gateways, HAProxys, Redis and so many workers."""
    redis = _base("redis")
    more = max(0.0, redis_bytes(pictures) - redis.memory)
    others = _base("gateway") + _base("haproxy") + redis + Resources(memory=more, memory_limit=more)
    return worker(model) * workers + others


def redis_bytes(pictures: int) -> float:
    """Return the memory of a Redis that keeps so many pictures; at least that of the manifest."""
    return max(_base("redis").memory, REDIS_SPARE * pictures * PICTURE_BYTES)


def worker(model: str) -> Resources:
    """Return what one worker pod takes. `model` is a key of FIGURES."""
    deployments = [_document(KUBERNETES / "worker" / "worker.yaml", "Deployment", "worker")]
    if model != "vit_t":
        deployments += _patches(KUBERNETES / "components" / "large-worker")
    if model == "vit_h-gpu":
        deployments += _patches(KUBERNETES / "overlays" / "gpu")
    return _resources(deployments)


def _base(name: str) -> Resources:
    """Return what the fewest replicas of a Deployment of the base take together."""
    manifest = KUBERNETES / "base" / f"{name}.yaml"
    deployment = _document(manifest, "Deployment", name)
    if "replicas" in deployment["spec"]:
        replicas = int(deployment["spec"]["replicas"])
    else:
        scaler = _document(manifest, "HorizontalPodAutoscaler", name)
        replicas = int(scaler["spec"]["minReplicas"])
    return _resources([deployment]) * replicas


def _document(manifest: Path, kind: str, name: str) -> dict[str, Any]:
    documents: Iterator[dict[str, Any]] = yaml.safe_load_all(manifest.read_text())
    return next(
        document
        for document in documents
        if document["kind"] == kind and document["metadata"]["name"] == name
    )


def _patches(folder: Path) -> list[dict[str, Any]]:
    """Return the patches of a kustomization that set resources of a worker's container."""
    patches = yaml.safe_load((folder / "kustomization.yaml").read_text())["patches"]
    return [yaml.safe_load(p["patch"]) for p in patches if "resources:" in p["patch"]]


def _resources(deployments: Iterable[dict[str, Any]]) -> Resources:
    """Return those of the first container. Each further Deployment is a patch of the first."""
    requests: dict[str, str] = {}
    limits: dict[str, str] = {}
    for deployment in deployments:
        resources = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]
        requests |= resources.get("requests", {})
        limits |= resources.get("limits", {})
    return Resources(
        _quantity(requests["cpu"]),
        _quantity(requests["memory"]),
        _quantity(limits["memory"]),
        float(limits.get("nvidia.com/gpu", 0)),
    )


def _quantity(text: str) -> float:
    """Return a quantity of Kubernetes, such as `200m` or `7Gi`, as cores or bytes."""
    for unit, factor in {"m": 1e-3, "Mi": 2.0**20, "Gi": 2.0**30}.items():
        if text.endswith(unit):
            return float(text.removesuffix(unit)) * factor
    return float(text)
