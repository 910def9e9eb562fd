"""This module defines a worker's metrics: their names, units and labels.

TorchServe looks metrics up in `config/metrics.yaml`, which repeats this table; a test compares the
two. The module needs neither TorchServe nor Prometheus: the caller passes a function that emits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """The definition of one metric."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    unit: str
    labels: tuple[str, ...]


REQUESTS = Metric("samserve_requests_total", "counter", "Count", ("lane", "status", "code"))
STEP = Metric("samserve_step_seconds", "histogram", "Seconds", ("lane", "step"))
EMBEDDINGS = Metric("samserve_embeddings_total", "counter", "Count", ("lane", "source"))
BATCH = Metric("samserve_batch_size", "histogram", "Count", ("lane",))
MASKS = Metric("samserve_answer_masks", "histogram", "Count", ("lane",))
REDIS = Metric("samserve_redis_total", "counter", "Count", ("lane", "outcome"))
GPU_USED = Metric("samserve_gpu_memory_used_bytes", "gauge", "Bytes", ("device",))
GPU_TOTAL = Metric("samserve_gpu_memory_total_bytes", "gauge", "Bytes", ("device",))

METRICS = (REQUESTS, STEP, EMBEDDINGS, BATCH, MASKS, REDIS, GPU_USED, GPU_TOTAL)

Emit = Callable[[Metric, float, tuple[str, ...]], None]
"""Emits a metric: what to add to it (for a gauge: its value), and the values of its labels."""


class WorkerMetrics:
    """The metrics of one worker of one lane."""

    def __init__(self, lane: str, emit: Emit) -> None:
        self._lane = lane
        self._emit = emit
        self._emitted: Counter[tuple[Metric, str]] = Counter()

    def batch(self, size: int) -> None:
        """Count a batch of this many requests."""
        self._emit(BATCH, size, (self._lane,))

    def step(self, name: str, seconds: float) -> None:
        """Count a step of the work and its time."""
        self._emit(STEP, seconds, (self._lane, name))

    def masks(self, count: int) -> None:
        """Count an answer with this many masks."""
        self._emit(MASKS, count, (self._lane,))

    def answered(self, status: int, code: str) -> None:
        """Count an answered request; `code` is the error's code, or `ok`."""
        self._emit(REQUESTS, 1, (self._lane, str(status), code))

    def gpu(self, device: int, used: int, total: int) -> None:
        """Set the memory of a GPU in bytes, used by any process and in all."""
        self._emit(GPU_USED, used, (str(device),))
        self._emit(GPU_TOTAL, total, (str(device),))

    def embeddings(self, found: Mapping[str, int], redis: Mapping[str, int]) -> None:
        """Add what is new in the counts of embeddings by source, and of Redis by outcome.

        Args:
            found, redis: counts since the start of the worker.
        """
        for metric, counts in ((EMBEDDINGS, found), (REDIS, redis)):
            for value, count in list(counts.items()):
                new = count - self._emitted[metric, value]
                if new:
                    self._emit(metric, new, (self._lane, value))
                    self._emitted[metric, value] = count
