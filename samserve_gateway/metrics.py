"""What the gateway counts and times, for Prometheus: the page `/metrics`.

A worker's own metrics are at TorchServe's metrics address (`samserve.metrics`).
"""

from __future__ import annotations

from collections.abc import Mapping
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

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

# From a click on a known picture to the longest automask.
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
            f"{prefix}requests", "Answers.", ["route", "status"], registry=registry
        )
        self.seconds = Histogram(
            f"{prefix}request_seconds",
            "From a request's first byte to its answer's last.",
            route,
            buckets=_SECONDS,
            registry=registry,
        )
        self.received = Counter(
            f"{prefix}received_bytes", "Bodies of requests.", route, registry=registry
        )
        self.sent = Counter(f"{prefix}sent_bytes", "Bodies of answers.", route, registry=registry)
        self.in_flight = Gauge(
            f"{prefix}in_flight", "Requests not answered yet.", route, registry=registry
        )
        self.pictures = Counter(
            f"{prefix}pictures",
            "How pictures went on to a worker: known (as a digest), forgotten (as a digest and "
            "then in full), full.",
            ["outcome"],
            registry=registry,
        )
        self.retries = Counter(
            f"{prefix}retries",
            "Requests that were lost, and sent once more.",
            registry=registry,
        )
        self._ready_workers = Gauge(
            f"{prefix}ready_workers", "READY workers.", ["lane"], registry=registry
        )
        self._lane_ready = Gauge(
            f"{prefix}lane_ready",
            "1 where a READY worker has answered a real inference.",
            ["lane"],
            registry=registry,
        )

    def page(self, lanes: Mapping[str, Mapping[str, Any]]) -> bytes:
        """All of them as text.

        Args:
            lanes: each lane's state, as `Readiness.check` gives it.
        """
        self._ready_workers.clear()
        self._lane_ready.clear()
        for name, lane in lanes.items():
            self._ready_workers.labels(name).set(lane["workers"])
            self._lane_ready.labels(name).set(lane["state"] == "ready")
        return generate_latest(self._registry)
