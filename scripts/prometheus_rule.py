"""This program writes the PrometheusRule of deploy/kubernetes from alerts.yml.

python -m scripts.prometheus_rule
"""

from __future__ import annotations

from pathlib import Path
from textwrap import indent

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yml"
RULE = DEPLOY / "kubernetes/components/prometheus-operator/rules.yaml"

_HEAD = """\
# Written from deploy/prometheus/alerts.yml by `python -m scripts.prometheus_rule`.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata: {name: samserve}
spec:
"""


def rule() -> str:
    """Return the PrometheusRule that has the groups of alerts.yml."""
    return _HEAD + indent(ALERTS.read_text(), "  ")


if __name__ == "__main__":
    RULE.write_text(rule())
