"""The names of a worker's metrics, and what is told when."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import yaml

from samserve.serving.metrics import METRICS, Metric, WorkerMetrics
from tests.support.paths import ROOT

CONFIG = yaml.safe_load((ROOT / "config" / "metrics.yaml").read_text())


def test_torchserve_knows_each_as_we_do() -> None:
    configured = {
        Metric(entry["name"], kind, entry["unit"], tuple(entry["dimensions"]))
        for kind, entries in CONFIG["model_metrics"].items()
        for entry in entries
    }
    assert configured == set(METRICS)
    assert len({metric.name for metric in METRICS}) == len(METRICS)


@pytest.fixture
def told() -> list[Any]:
    return []


@pytest.fixture
def metrics(told: list[Any]) -> WorkerMetrics:
    return WorkerMetrics(
        "vit_t", lambda metric, value, labels: told.append((metric, value, labels))
    )


def test_labels_fit(metrics: WorkerMetrics, told: list[Any]) -> None:
    metrics.batch(2)
    metrics.step("embed", 0.1)
    metrics.masks(3)
    metrics.answered(422, "invalid_field")
    metrics.gpu(0, 1, 2)
    metrics.embeddings({"memory": 1}, {"hit": 1})
    assert {metric for metric, _, _ in told} == set(METRICS)
    for metric, _, labels in told:
        assert len(labels) == len(metric.labels)
        # TorchServe separates them by these.
        assert not set("".join(labels)) & set(":,|")


def test_only_what_is_new_is_counted(metrics: WorkerMetrics, told: list[Any]) -> None:
    found, redis = Counter(encoder=1), Counter[str]()
    metrics.embeddings(found, redis)
    metrics.embeddings(found, redis)
    found["memory"] += 2
    redis["hit"] += 1
    metrics.embeddings(found, redis)
    assert [(value, labels) for _, value, labels in told] == [
        (1, ("vit_t", "encoder")),
        (2, ("vit_t", "memory")),
        (1, ("vit_t", "hit")),
    ]
