"""An operator meets no trap in the manifests: rollouts, drains, probes, images, names, examples."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml

from samserve.archives.settings import settings_of
from samserve.model_types import MODEL_TYPES
from samserve_gateway.settings import Settings
from scripts import prometheus_rule
from tests.support.deployment import (
    DEPLOY,
    HAPROXY,
    Manifest,
    built,
    containers,
    image_of,
    of_kind,
    pods,
    rendered_with,
    size,
)
from tests.support.redis import free_port, is_up
from tests.support.waiting import wait_for

OVERLAYS = ["overlays/cpu", "overlays/cpu-keda", "overlays/gpu"]
README = (DEPLOY / "README.md").read_text()

pytestmark = pytest.mark.needs("kubectl")
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def deployments(overlay: str) -> dict[str, Manifest]:
    return {d["metadata"]["name"]: d["spec"] for d in of_kind(overlay, "Deployment")}


def scalers(overlay: str) -> dict[str, tuple[int, int]]:
    """Return the fewest and the most pods of each Deployment that is scaled."""
    found = {}
    for scaler in of_kind(overlay, "HorizontalPodAutoscaler"):
        spec = scaler["spec"]
        found[spec["scaleTargetRef"]["name"]] = (spec["minReplicas"], spec["maxReplicas"])
    for scaler in of_kind(overlay, "ScaledObject"):
        spec = scaler["spec"]
        found[spec["scaleTargetRef"]["name"]] = (spec["minReplicaCount"], spec["maxReplicaCount"])
    return found


@overlays
def test_what_hangs_is_ended_within_a_minute_and_nothing_is_probed_in_haste(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        for container in containers(pod):
            for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                if probe in container:
                    assert container[probe].get("timeoutSeconds", 1) >= 5, (name, probe)
            pod_grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
            for probe in ("startupProbe", "livenessProbe"):
                if probe in container:
                    grace = container[probe].get("terminationGracePeriodSeconds", pod_grace)
                    assert grace <= 30, (name, probe)
            assert "livenessProbe" in container, name


@overlays
def test_images_are_those_that_the_readme_builds(overlay: str) -> None:
    made = set(re.findall(r"-t \$REGISTRY/(\S+)", README))
    foreign = set(re.findall(r"image: ((?!samserve-)\S+)", (DEPLOY / "compose.yaml").read_text()))
    used = {c["image"] for pod in pods(overlay).values() for c in containers(pod)}
    ours = {image for image in used if image.partition("/")[0].startswith("samserve-")}
    assert ours
    assert ours <= made
    assert used - ours <= foreign
    for image in made:
        assert re.search(r":\d+\.\d+\.\d+", image), image  # such a tag does not move


def test_each_build_makes_one_image() -> None:
    """Two builds with different arguments have different tags."""
    text = README.replace("\\\n", " ")
    builds = re.findall(r"docker build .* -t \$REGISTRY/(\S+)", text)
    assert len(builds) == len(set(builds)) == 3


@pytest.mark.parametrize("tagged", [False, True])
def test_images_from_a_registry(tagged: bool, tmp_path: Path) -> None:
    """Each worker has the tag of its image: the usual one, or the new one of an upgrade."""
    [own] = re.findall(r"^   (images:\n(?:     - .*\n)+)", README, re.MULTILINE)
    made = re.findall(r"-t \$REGISTRY/(\S+):(\S+)", README)
    if tagged:
        made = [(name, f"{tag}.2") for name, tag in made]
        for name, tag in made:
            own = own.replace(f"{{name: {name},", f'{{name: {name}, newTag: "{tag}",')
    manifests = rendered_with(tmp_path, "overlays/gpu", own)
    ours = {
        m["metadata"]["name"]: image
        for m in manifests
        if m["kind"] == "Deployment"
        for image in [m["spec"]["template"]["spec"]["containers"][0]["image"]]
        if "samserve-" in image
    }
    names = {"gateway": "gateway", "worker-vit-t": "worker", "worker-vit-h": "worker-cuda"}
    tags = dict(made)
    assert ours == {
        deployment: f"registry.example/samserve-{name}:{tags[f'samserve-{name}']}"
        for deployment, name in names.items()
    }


@overlays
def test_another_namespace(overlay: str, tmp_path: Path) -> None:
    manifests = rendered_with(tmp_path, overlay, "namespace: other")
    for manifest in manifests:
        if manifest["kind"] == "Namespace":
            assert manifest["metadata"]["name"] == "other"
        else:
            assert manifest["metadata"]["namespace"] == "other"
    assert len(manifests) == len(built(overlay))
    # Nothing but names and paths of ours still says samserve: no DNS name of the other namespace.
    assert not re.search(r"\.samserve\b", yaml.safe_dump_all(manifests).replace("python -m", ""))


@overlays
def test_a_rollout_ends_before_its_deadline(overlay: str) -> None:
    for name, spec in deployments(overlay).items():
        [container] = spec["template"]["spec"]["containers"]
        start = container.get("startupProbe", container["readinessProbe"])
        wait = start["periodSeconds"] * start.get("failureThreshold", 3)
        if spec["strategy"].get("rollingUpdate", {}).get("maxSurge") == 0:
            wait += spec["template"]["spec"]["terminationGracePeriodSeconds"]
        assert spec.get("progressDeadlineSeconds", 600) > wait + 60, name


@overlays
def test_one_lane_that_is_down_keeps_no_gateway_from_its_clients(overlay: str) -> None:
    """A new gateway waits for any lane. One that serves asks for none, nor does its liveness."""
    [container] = pods(overlay)["gateway"]["spec"]["containers"]
    asked = {probe: container[probe]["httpGet"]["path"] for probe in container if "Probe" in probe}
    assert asked == {
        "startupProbe": "/readyz?lanes=any",
        "readinessProbe": "/healthz",
        "livenessProbe": "/healthz",
    }


@overlays
def test_gpus_roll_without_a_spare_one_and_one_worker_always_stays(overlay: str) -> None:
    budgets = {p["metadata"]["name"]: p["spec"] for p in of_kind(overlay, "PodDisruptionBudget")}
    for name, spec in deployments(overlay).items():
        [container] = spec["template"]["spec"]["containers"]
        if "nvidia.com/gpu" in container["resources"]["limits"]:
            assert spec["strategy"]["rollingUpdate"] == {"maxUnavailable": 1, "maxSurge": 0}
        if name == "redis":
            continue
        least = scalers(overlay).get(name, (spec.get("replicas", 1), 0))[0]
        assert least >= 2, name
        assert budgets[name]["maxUnavailable"] == 1
        # A pod that hangs in its start blocks no drain.
        assert budgets[name]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        # Only one of them sets the number of pods.
        assert ("replicas" in spec) != (name in scalers(overlay)), name
        annotations = spec["template"]["metadata"]["annotations"]
        assert annotations["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"


@overlays
def test_haproxy_has_a_place_for_every_worker(overlay: str) -> None:
    places = {int(n) for n in re.findall(r"server-template \S+ (\d+)", HAPROXY)}
    for name, (_, most) in scalers(overlay).items():
        if name.startswith("worker"):
            assert min(places) > most + 1  # and one more during a rollout


@overlays
def test_no_pod_waits_for_a_volume_or_fetches_anything(overlay: str) -> None:
    assert not of_kind(overlay, "PersistentVolumeClaim")
    for pod in pods(overlay).values():
        assert not [v for v in pod["spec"].get("volumes", []) if "persistentVolumeClaim" in v]
    for policy in of_kind(overlay, "NetworkPolicy"):
        for rule in policy["spec"].get("egress", []):
            assert rule["to"], policy["metadata"]["name"]
            for destination in rule["to"]:
                assert destination.get("ipBlock", {"cidr": "/32"})["cidr"].endswith("/32")


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_a_worker_has_disk_for_its_unpacked_archives(model_type: str) -> None:
    # The archive of a type that OpenVINO runs has its weights a second time.
    copies = 2 if settings_of(model_type)["samserve"]["cpu_runtime"] == "openvino" else 1
    archive = max(200 * 10**6, copies * MODEL_TYPES[model_type].n_bytes)
    [pod] = pods(f"workers/{model_type}").values()
    [tmp] = [v for v in pod["spec"]["volumes"] if v["name"] == "tmp"]
    # Both lanes unpack theirs.
    assert size(tmp["emptyDir"]["sizeLimit"]) > 2 * archive


@pytest.mark.parametrize("overlay", ["overlays/cpu-keda", "overlays/gpu"])
def test_keda_takes_the_scaled_objects(overlay: str) -> None:
    """The rules are KEDA's own admission checks, and the fields those of each version since 2.8."""
    scaled = of_kind(overlay, "ScaledObject")
    assert scaled
    for spec in (s["spec"] for s in scaled):
        assert set(spec) <= {
            "scaleTargetRef", "minReplicaCount", "maxReplicaCount", "advanced", "fallback",
            "triggers", "pollingInterval", "cooldownPeriod",
        }  # fmt: skip
        assert set(spec["fallback"]) == {"failureThreshold", "replicas"}  # `behavior` is of 2.17
        least, most = spec["minReplicaCount"], spec["maxReplicaCount"]
        assert least <= spec["fallback"]["replicas"] <= most
        others = [t for t in spec["triggers"] if t["type"] not in ("cpu", "memory")]
        assert others
        for trigger in others:
            assert set(trigger) == {"type", "metricType", "metadata"}
            assert trigger["metricType"] == "AverageValue"
            assert set(trigger["metadata"]) == {"serverAddress", "threshold", "query"}
            assert float(trigger["metadata"]["threshold"]) > 0
        [deployment] = [
            d
            for d in of_kind(overlay, "Deployment")
            if d["metadata"]["name"] == spec["scaleTargetRef"]["name"]
        ]
        requests = deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"]
        for trigger in spec["triggers"]:
            if trigger["type"] == "cpu":
                assert trigger["metricType"] == "Utilization"
                assert "cpu" in requests  # KEDA refuses it otherwise


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_ways_in_let_every_request_through(overlay: str, tmp_path: Path) -> None:
    lines = (
        "namespace: samserve\ncomponents: [{kubernetes}/components/ingress-nginx, "
        "{kubernetes}/components/gateway-api, {kubernetes}/components/prometheus-operator]"
    )
    manifests = rendered_with(tmp_path, overlay, lines)
    by_kind: dict[str, list[Manifest]] = {}
    for manifest in manifests:
        by_kind.setdefault(manifest["kind"], []).append(manifest)
    [ingress] = by_kind["Ingress"]
    kubernetes_validate.validate(ingress, "1.30", strict=True)
    settings = Settings()
    prefix = "nginx.ingress.kubernetes.io/proxy-"
    annotations = ingress["metadata"]["annotations"]
    assert size(annotations[f"{prefix}body-size"]) >= settings.max_body_bytes
    for name in ("read-timeout", "send-timeout"):
        assert int(annotations[f"{prefix}{name}"]) > settings.automask_timeout_s
    [http] = [rule["http"] for rule in ingress["spec"]["rules"]]
    assert {path["path"] for path in http["paths"]} == {"/sam/", "/docs"}
    [service] = [s for s in by_kind["Service"] if s["metadata"]["name"] == "gateway"]
    [port] = service["spec"]["ports"]
    for path in http["paths"]:
        assert path["backend"]["service"] == {"name": "gateway", "port": {"name": port["name"]}}
    [route] = by_kind["HTTPRoute"]
    [rule] = route["spec"]["rules"]
    assert {match["path"]["value"] for match in rule["matches"]} == {"/sam", "/docs"}
    assert rule["backendRefs"] == [{"name": "gateway", "port": port["port"]}]
    for timeout in rule["timeouts"].values():
        assert re.fullmatch(r"[0-9]{1,5}s", timeout)
        assert int(timeout[:-1]) > settings.automask_timeout_s
    by_app = {d["spec"]["selector"]["matchLabels"]["app"]: d for d in by_kind["Deployment"]}
    for monitor in by_kind["PodMonitor"]:
        pod = by_app[monitor["spec"]["selector"]["matchLabels"]["app"]]["spec"]["template"]
        named = {p["name"]: p["containerPort"] for p in pod["spec"]["containers"][0]["ports"]}
        [endpoint] = monitor["spec"]["podMetricsEndpoints"]
        scraped = pod["metadata"]["annotations"]["prometheus.io/port"]
        assert named[endpoint["port"]] == int(scraped)


def test_the_rule_of_the_operator_is_alerts_yml() -> None:
    assert prometheus_rule.RULE.read_text() == prometheus_rule.rule()
    rule: dict[str, Any] = yaml.safe_load(prometheus_rule.rule())
    assert rule["spec"] == yaml.safe_load(prometheus_rule.ALERTS.read_text())


def test_alerts_and_the_runbook_name_what_there_is() -> None:
    """Commands of README.md name Deployments, containers and Secrets of the overlays."""
    known = {name for overlay in OVERLAYS for name in deployments(overlay)}
    named = set(re.findall(r"\bdeployment/([a-z][\w-]*)", README))
    assert named
    assert named <= known
    secrets = set(re.findall(r"create secret generic ([\w-]+)", README))
    wanted = {
        entry["valueFrom"]["secretKeyRef"]["name"]
        for overlay in OVERLAYS
        for pod in pods(overlay).values()
        for container in containers(pod)
        for entry in container.get("env", [])
        if "secretKeyRef" in entry.get("valueFrom", {})
    }
    assert wanted <= secrets
    # Rules of Kubernetes' own series are for the namespace of the overlays.
    namespaces = set(re.findall(r'namespace="(\w+)"', prometheus_rule.ALERTS.read_text()))
    assert namespaces == {m["metadata"]["name"] for m in of_kind(OVERLAYS[0], "Namespace")}


@pytest.mark.needs("redis-server")
def test_redis_wants_its_password(tmp_path: Path) -> None:
    """The command of the manifest runs here, with another folder and port."""
    [container] = pods("overlays/cpu")["redis"]["spec"]["containers"]
    conf = (DEPLOY / "redis/redis.conf").read_text()
    port = free_port()
    (tmp_path / "redis.conf").write_text(f"{conf}\nport {port}\ndir {tmp_path}\n")
    [script] = container["args"]
    command = [*container["command"], script.replace("/etc/redis", str(tmp_path))]
    path = os.environ["PATH"]
    refused = subprocess.run(
        command, env={"PATH": path}, capture_output=True, check=False, timeout=30
    )
    assert refused.returncode != 0  # without a password it does not start
    environ = {"PATH": path, "REDIS_PASSWORD": "s3cret"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port, password="s3cret") as client:
            wait_for(lambda: is_up(client))
            assert client.config_get("maxmemory")["maxmemory"] == str(2**30)
        with redis.Redis(port=port) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        probe = container["livenessProbe"]["exec"]["command"]
        asked = [part.replace("redis-cli", f"redis-cli -p {port}") for part in probe]
        assert subprocess.run(asked, env=environ, check=False).returncode == 0
        wrong = {**environ, "REDIS_PASSWORD": "wrong"}
        assert subprocess.run(asked, env=wrong, check=False).returncode != 0
    finally:
        process.terminate()
        process.wait()


def test_images_of_workers_are_told_apart() -> None:
    images = {
        "nvidia.com/gpu" in c["resources"]["limits"]: c["image"]
        for pod in pods("overlays/gpu").values()
        for c in containers(pod)
        if image_of(c) == "worker"
    }
    assert len(set(images.values())) == 2
