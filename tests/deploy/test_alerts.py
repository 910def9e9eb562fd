"""Each alert fires once from metrics as they really are, and not from those of a healthy system.

`promtool test rules` evaluates alerts.yml. The names and labels of the series are compared with the
metrics page of a real gateway and of a real HAProxy, and with config/metrics.yaml.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from samserve_gateway.metrics import Metrics
from samserve_gateway.queues import LaneQueue
from tests.support.deployment import DEPLOY, HAPROXY
from tests.support.paths import ROOT

RULES = DEPLOY / "prometheus/alerts.yml"
ALERTS: list[dict[str, Any]] = yaml.safe_load(RULES.read_text())["groups"][0]["rules"]


@dataclass(frozen=True)
class Case:
    """Series on which one alert fires after 40 minutes, and series on which it does not.

    Attributes:
        labels: those of the alert, without its severity.
        says: a part of its summary.
    """

    alert: str
    fires: dict[str, str]
    quiet: dict[str, str]
    labels: dict[str, str]
    says: str = ""


GATEWAY = 'instance="10.0.0.1:8000"'
KUBE = 'namespace="samserve"'
REQUESTS = "samserve_gateway_requests_total"
WAIT = "ts_queue_latency_microseconds"
DONE = "ts_inference_requests_total"
OF_LANE = 'model_name="vit_t", model_version="default", hostname="h"'
OF_AUTOMASK = 'model_name="vit_t-automask", model_version="default", hostname="h"'
SILENT = "samserve_gateway_silent_seconds"
SECONDS = 'samserve_gateway_request_seconds_bucket{route="/sam/", le='
RESTARTS = "kube_pod_container_status_restarts_total"
REASON = "kube_pod_container_status_last_terminated_reason"
DESIRED = "kube_horizontalpodautoscaler_status_desired_replicas"
MOST = "kube_horizontalpodautoscaler_spec_max_replicas"
POD = f'{KUBE}, pod="worker-vit-t-1", container="worker"'
HPA = f'{KUBE}, horizontalpodautoscaler="worker-vit-t"'
DEPLOYMENT = f'{KUBE}, deployment="worker-vit-t"'
DOWN = 'haproxy_server_status{{instance="{}", proxy="vit_t", server="vit_t-1", state="{}"}}'
UP = 'haproxy_backend_status{proxy="vit_t", state="UP"}'


def always(value: float) -> str:
    return f"{value:g}+0x200"


def rising(step: float) -> str:
    return f"0+{step:g}x200"


CASES = [
    Case(
        "SamserveNoReadyWorker",
        {f'samserve_gateway_lane_ready{{{GATEWAY}, lane="vit_t"}}': always(0)},
        # One gateway of two sees the lane: it is a gateway's trouble.
        {
            f'samserve_gateway_lane_ready{{{GATEWAY}, lane="vit_t"}}': always(0),
            'samserve_gateway_lane_ready{instance="10.0.0.2:8000", lane="vit_t"}': always(1),
        },
        {"lane": "vit_t"},
    ),
    Case(
        "SamserveGatewayDown",
        {},
        {f'{REQUESTS}{{route="/sam/", status="200"}}': rising(1)},
        {},
    ),
    Case(
        "SamserveErrors",
        {
            f'{REQUESTS}{{route="/sam/", status="200"}}': rising(90),
            f'{REQUESTS}{{route="/sam/", status="503"}}': rising(10),
        },
        {
            f'{REQUESTS}{{route="/sam/", status="200"}}': rising(90),
            f'{REQUESTS}{{route="/sam/", status="400"}}': rising(10),
        },
        {"route": "/sam/"},
    ),
    Case(
        "SamserveQueue",
        {f"{WAIT}{{{OF_LANE}}}": rising(3e6), f"{DONE}{{{OF_LANE}}}": rising(1)},
        {f"{WAIT}{{{OF_LANE}}}": rising(3e4), f"{DONE}{{{OF_LANE}}}": rising(1)},
        {"model_name": "vit_t"},
    ),
    Case(
        "SamserveAutomaskQueue",
        {f"{WAIT}{{{OF_AUTOMASK}}}": rising(90e6), f"{DONE}{{{OF_AUTOMASK}}}": rising(1)},
        {f"{WAIT}{{{OF_AUTOMASK}}}": rising(9e6), f"{DONE}{{{OF_AUTOMASK}}}": rising(1)},
        {"model_name": "vit_t-automask"},
    ),
    Case(
        "SamserveStuck",
        {f'{SILENT}{{{GATEWAY}, lane="vit_t"}}': rising(15)},
        {f'{SILENT}{{{GATEWAY}, lane="vit_t"}}': always(40)},
        {"lane": "vit_t"},
    ),
    Case(  # registered weights
        "SamserveStuck",
        {f'{SILENT}{{{GATEWAY}, lane="vit_t.nuclei"}}': rising(15)},
        {f'{SILENT}{{{GATEWAY}, lane="vit_t.nuclei-automask"}}': always(400)},
        {"lane": "vit_t.nuclei"},
    ),
    Case(
        "SamserveStuck",
        {f'{SILENT}{{{GATEWAY}, lane="vit_h"}}': rising(15)},
        {f'{SILENT}{{{GATEWAY}, lane="vit_h"}}': always(200)},
        {"lane": "vit_h"},
    ),
    Case(
        "SamserveStuck",
        {f'{SILENT}{{{GATEWAY}, lane="vit_h-automask"}}': always(4000)},
        {f'{SILENT}{{{GATEWAY}, lane="vit_h-automask"}}': always(3000)},
        {"lane": "vit_h-automask"},
    ),
    Case(
        "SamserveSlow",
        {
            f'{SECONDS}"1.0"}}': rising(50),
            f'{SECONDS}"10.0"}}': rising(100),
            f'{SECONDS}"+Inf"}}': rising(100),
        },
        {
            f'{SECONDS}"1.0"}}': rising(99),
            f'{SECONDS}"10.0"}}': rising(100),
            f'{SECONDS}"+Inf"}}': rising(100),
        },
        {},
    ),
    Case("SamserveHAProxyDown", {}, {UP: always(1)}, {}),
    Case(
        "SamserveWorkerDown",
        # Two HAProxies count the same worker.
        {DOWN.format("a", "DOWN"): always(1), DOWN.format("b", "DOWN"): always(1)},
        # What a pod that is not ready looks like
        {DOWN.format("a", "MAINT"): always(1), DOWN.format("a", "DOWN"): always(0)},
        {"proxy": "vit_t"},
        "1 worker(s) of vit_t",
    ),
    Case(
        "SamservePodsUnavailable",
        {f"kube_deployment_status_replicas_unavailable{{{DEPLOYMENT}}}": always(1)},
        # A rollout
        {
            f"kube_deployment_status_replicas_unavailable{{{DEPLOYMENT}}}": "0x100 1x20 0x80",
            'kube_deployment_status_replicas_unavailable{namespace="other", deployment="x"}': (
                always(1)
            ),
        },
        {"namespace": "samserve", "deployment": "worker-vit-t"},
    ),
    Case(
        "SamserveOutOfMemory",
        {f"{RESTARTS}{{{POD}}}": rising(1), f'{REASON}{{{POD}, reason="OOMKilled"}}': always(1)},
        # It happened long ago.
        {f"{RESTARTS}{{{POD}}}": always(3), f'{REASON}{{{POD}, reason="OOMKilled"}}': always(1)},
        {"namespace": "samserve", "pod": "worker-vit-t-1", "container": "worker"},
    ),
    Case(
        "SamserveAtMaximum",
        {f"{DESIRED}{{{HPA}}}": always(16), f"{MOST}{{{HPA}}}": always(16)},
        {f"{DESIRED}{{{HPA}}}": always(15), f"{MOST}{{{HPA}}}": always(16)},
        {"namespace": "samserve", "horizontalpodautoscaler": "worker-vit-t"},
    ),
    Case(
        "SamserveRedis",
        {'samserve_redis_total{lane="vit_t", outcome="timeout"}': rising(10)},
        {'samserve_redis_total{lane="vit_t", outcome="miss"}': rising(10)},
        {},
    ),
]

KUBE_STATE_METRICS = {
    "kube_deployment_status_replicas_unavailable": {"namespace", "deployment"},
    RESTARTS: {"namespace", "pod", "container", "uid"},
    REASON: {"namespace", "pod", "container", "uid", "reason"},
    DESIRED: {"namespace", "horizontalpodautoscaler"},
    MOST: {"namespace", "horizontalpodautoscaler"},
}
"""Series of kube-state-metrics 2 and their labels, from its documentation."""


@pytest.mark.needs("promtool")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.alert} {case.labels}")
def test_each_alert_fires(case: Case, tmp_path: Path) -> None:
    assert fired(case, case.fires, tmp_path) == [case.labels]
    assert fired(case, case.quiet, tmp_path) == []


def fired(case: Case, series: dict[str, str], folder: Path) -> list[dict[str, str]]:
    """Return the labels of this alert's instances that fire after 40 minutes of these series."""
    test = {
        "rule_files": [str(RULES)],
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [{"series": s, "values": v} for s, v in series.items()],
                # That no alert of this name fires is wrong, if one does; promtool then prints it.
                "alert_rule_test": [
                    {"eval_time": "40m", "alertname": case.alert, "exp_alerts": []}
                ],
            }
        ],
    }
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", str(path)], capture_output=True, text=True, check=False
    )
    said = done.stdout + done.stderr
    if done.returncode == 0:
        return []
    assert "got:" in said, said
    assert case.says in said
    found = []
    for labels in re.findall(r"Labels:\{([^}]*)\}", said.split("got:")[1]):
        pairs = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        assert pairs.pop("alertname") == case.alert
        [rule] = [rule for rule in ALERTS if rule["alert"] == case.alert]
        assert pairs.pop("severity") == rule["labels"]["severity"]
        found.append(pairs)
    return found


def test_every_alert_has_a_case_and_a_row_in_the_runbook() -> None:
    names = [rule["alert"] for rule in ALERTS]
    assert set(names) == {case.alert for case in CASES}
    runbook = (DEPLOY / "README.md").read_text()
    for name in names:
        assert re.search(rf"^\| `{name}` \| [^|]+ \| [^|]+ \|$", runbook, re.MULTILINE), name


def series_of_the_cases() -> dict[str, set[str]]:
    """Return the labels of each series in the cases, without those that Prometheus adds."""
    found: dict[str, set[str]] = {}
    for case in CASES:
        for text in [*case.fires, *case.quiet]:
            name, _, labels = text.partition("{")
            found.setdefault(name, set()).update(re.findall(r"(\w+)=", labels))
    return {name: labels - {"instance"} for name, labels in found.items()}


def labels_on(page: str, name: str) -> set[str]:
    [*lines] = re.findall(rf"^{name}\{{(.*)\}} ", page, re.MULTILINE)
    assert lines, name
    return set(re.findall(r'(\w+)="', lines[0]))


def test_the_gateways_series_are_as_in_the_cases() -> None:
    metrics = Metrics()
    metrics.requests.labels("/sam/", "200").inc()
    metrics.seconds.labels("/sam/").observe(1)
    lanes = {"vit_t": {"workers": 1, "state": "ready"}}
    page = metrics.page(lanes, [("vit_t", LaneQueue("vit_t", 1, throttled=False))]).decode()
    of_gateway = {n: v for n, v in series_of_the_cases().items() if "samserve_gateway" in n}
    assert len(of_gateway) == 4
    for name, labels in of_gateway.items():
        assert labels_on(page, name) == labels


def test_the_workers_series_are_as_in_the_cases() -> None:
    config = yaml.safe_load((ROOT / "config/metrics.yaml").read_text())
    known = {
        metric["name"]: set(metric["dimensions"])
        for section in ("ts_metrics", "model_metrics")
        for metrics in config[section].values()
        for metric in metrics
    }
    used = {n: v for n, v in series_of_the_cases().items() if n.startswith(("ts_", "samserve_r"))}
    assert len(used) == 3
    for name, labels in used.items():
        assert labels == known[name]


def test_kubernetes_series_are_as_in_the_cases() -> None:
    used = {n: v for n, v in series_of_the_cases().items() if n.startswith("kube_")}
    assert set(used) == set(KUBE_STATE_METRICS)
    for name, labels in used.items():
        assert labels <= KUBE_STATE_METRICS[name]


@pytest.mark.needs("haproxy")
def test_haproxys_series_are_as_in_the_cases(tmp_path: Path) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    text = HAPROXY
    for port, free in zip((8080, 8081, 8405), ports, strict=True):
        text = text.replace(f"bind :{port}", f"bind 127.0.0.1:{free}")
    path = tmp_path / "haproxy.cfg"
    path.write_text(text)
    process = subprocess.Popen(
        ["haproxy", "-f", str(path)],
        env={"SAMSERVE_WORKERS_VIT_T": "worker.invalid", "SAMSERVE_WORKER_SECRET": "s" * 32,
             "PATH": "/usr/sbin:/usr/bin"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        page = metrics_of(ports[2])
    finally:
        process.terminate()
        process.wait()
    for name, labels in series_of_the_cases().items():
        if name.startswith("haproxy_"):
            assert labels_on(page, name) == labels
    assert 'proxy="vit_t",server="vit_t-1",state="MAINT"' in page


def metrics_of(port: int) -> str:
    for _ in range(100):
        try:
            return requests.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
        except requests.ConnectionError:
            time.sleep(0.1)
    raise AssertionError(json.dumps({"port": port, "answers": False}))
