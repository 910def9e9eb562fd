"""Values of Prometheus metrics pages."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from samserve_launcher import loopback


def value_of(page: str, name: str, **labels: str) -> float:
    """Return the sum of a metric's samples that have these labels; 0 if there are none."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Since:
    """How much a server's metrics have grown since this object was made."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._before = self.page()

    def page(self) -> str:
        return loopback.get(f"{self._url}/metrics", 30).text

    def __call__(self, name: str, **labels: str) -> float:
        return value_of(self.page(), name, **labels) - value_of(self._before, name, **labels)
