"""What a worker counts and times, and by which names.

`config/metrics.yaml` repeats this table, in which TorchServe looks them up; a test holds the two
together. Knows neither TorchServe nor Prometheus: whoever makes `WorkerMetrics` says how to tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One name, for all its labels' values."""

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

Tell = Callable[[Metric, float, tuple[str, ...]], None]
"""Told a metric, what to add to it (or what it is, of a gauge), and its labels' values."""


class WorkerMetrics:
    """The metrics of one worker of one lane."""

    def __init__(self, lane: str, tell: Tell) -> None:
        self._lane = lane
        self._tell = tell
        self._told: Counter[tuple[Metric, str]] = Counter()

    def batch(self, size: int) -> None:
        """So many requests came together."""
        self._tell(BATCH, size, (self._lane,))

    def step(self, name: str, seconds: float) -> None:
        """A step of the work was done."""
        self._tell(STEP, seconds, (self._lane, name))

    def masks(self, count: int) -> None:
        """An answer holds so many masks."""
        self._tell(MASKS, count, (self._lane,))

    def answered(self, status: int, code: str) -> None:
        """A request has its answer; `code` is the error's, or `ok`."""
        self._tell(REQUESTS, 1, (self._lane, str(status), code))

    def gpu(self, device: int, used: int, total: int) -> None:
        """Memory of a GPU in bytes, whoever uses it."""
        self._tell(GPU_USED, used, (str(device),))
        self._tell(GPU_TOTAL, total, (str(device),))

    def embeddings(self, found: Mapping[str, int], redis: Mapping[str, int]) -> None:
        """Where embeddings came from and how Redis did, each counted since the start."""
        for metric, counts in ((EMBEDDINGS, found), (REDIS, redis)):
            for value, count in list(counts.items()):
                new = count - self._told[metric, value]
                if new:
                    self._tell(metric, new, (self._lane, value))
                    self._told[metric, value] = count
