"""The gateway's metrics, and the page `/metrics` that Prometheus reads.

TorchServe's metrics address has the workers' metrics (`samserve.serving.metrics`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from .queues import LaneQueue

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

# Upper bounds of the buckets, from a click on a known picture to the longest automask.
_SECONDS = (
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1,
    2.5,
    5,
    10,
    30,
    60,
    120,
    300,
    600,
    1200,
    3600,
    7200,
)


class Metrics:
    """The metrics of one gateway."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        prefix, route = "samserve_gateway_", ["route"]
        self.requests = Counter(
            f"{prefix}requests", "Requests answered.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            f"{prefix}request_seconds",
            "Time from a request's first byte to the last byte of its answer.",
            route,
            buckets=_SECONDS,
            registry=registry,
        )
        self.received = Counter(
            f"{prefix}received_bytes", "Bytes of the requests' bodies.", route, registry=registry
        )
        self.sent = Counter(
            f"{prefix}sent_bytes", "Bytes of the answers' bodies.", route, registry=registry
        )
        self.in_flight = Gauge(
            f"{prefix}in_flight", "Requests not answered yet.", route, registry=registry
        )
        self.pictures = Counter(
            f"{prefix}pictures",
            "Pictures sent to a worker: known (as a digest), forgotten (as a digest and then in "
            "full), full.",
            ["outcome"],
            registry=registry,
        )
        self.retries = Counter(
            f"{prefix}retries",
            "Requests that were lost on the way to a worker, and sent again.",
            registry=registry,
        )
        self._add_connections(registry, prefix)
        self._add_lanes(registry, prefix)

    def _add_connections(self, registry: CollectorRegistry, prefix: str) -> None:
        self.connections = Gauge(f"{prefix}connections", "Open connections.", registry=registry)
        self.bodies_bytes = Gauge(
            f"{prefix}bodies_bytes", "Bytes of the requests' bodies in memory.", registry=registry
        )
        self.closed = Counter(
            f"{prefix}closed_connections",
            "Connections that the gateway closed, because there were too many or a client was too "
            "slow.",
            ["reason"],
            registry=registry,
        )

    def _add_lanes(self, registry: CollectorRegistry, prefix: str) -> None:
        self._waiting = Gauge(
            f"{prefix}waiting",
            "Requests that wait in the lane's queue.",
            ["lane"],
            registry=registry,
        )
        self._unanswered = Gauge(
            f"{prefix}unanswered",
            "Requests of the lane that have no answer yet: those that wait, and those at work.",
            ["lane"],
            registry=registry,
        )
        self._oldest = Gauge(
            f"{prefix}oldest_seconds",
            "Age of the lane's oldest request that has no answer yet.",
            ["lane"],
            registry=registry,
        )
        self._silent = Gauge(
            f"{prefix}silent_seconds",
            "How long the lane has had requests and has answered none of them.",
            ["lane"],
            registry=registry,
        )
        self._ready_workers = Gauge(
            f"{prefix}ready_workers", "READY workers of the lane.", ["lane"], registry=registry
        )
        self._lane_ready = Gauge(
            f"{prefix}lane_ready",
            "1 if a READY worker of the lane has answered a real inference, else 0.",
            ["lane"],
            registry=registry,
        )

    def page(
        self, lanes: Mapping[str, Mapping[str, Any]], queues: Iterable[tuple[str, LaneQueue]]
    ) -> bytes:
        """Return all metrics in Prometheus' text format.

        Args:
            lanes: the state of each lane, as `Readiness.check` returns it.
            queues: the lanes that have had requests, and their queues.
        """
        for name, queue in queues:
            self._waiting.labels(name).set(queue.waiting)
            self._unanswered.labels(name).set(queue.unanswered)
            self._oldest.labels(name).set(queue.oldest_s())
            self._silent.labels(name).set(queue.silent_s())
        self._ready_workers.clear()
        self._lane_ready.clear()
        for name, lane in lanes.items():
            self._ready_workers.labels(name).set(lane["workers"])
            self._lane_ready.labels(name).set(lane["state"] == "ready")
        return generate_latest(self._registry)
