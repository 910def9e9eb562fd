"""The Kubernetes manifests fit their schemas, and every port, path, variable and name exists.

Kustomize comes with kubectl. Tests that need the built manifests are skipped without it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import kubernetes_validate
import pytest

from samserve.model_types import MODEL_TYPES
from samserve.pictures.decoder_process import ADDRESS_SPACE
from samserve_gateway.settings import Settings
from samserve_launcher import worker
from samserve_launcher.configuration import LARGE_PROCESS_BYTES, PROCESS_BYTES
from samserve_launcher.door import SECOND_SECRET, SECRET
from tests.support.deployment import (
    DEPLOY,
    DOCKERFILE,
    HAPROXY,
    Manifest,
    built,
    containers,
    environment,
    haproxy_ports,
    image_of,
    known_variables,
    model_settings,
    of_kind,
    paths_of,
    pods,
    ports_of,
    size,
    worker_ports,
)
from tests.support.paths import ROOT

OVERLAYS = ["overlays/cpu", "overlays/cpu-keda", "overlays/gpu"]
KUBERNETES = "1.30"  # the oldest that deploy/README.md promises
CUSTOM = {"ScaledObject"}  # kinds without a schema in Kubernetes

needs_kubectl = pytest.mark.needs("kubectl")
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


@needs_kubectl
@overlays
def test_schemas(overlay: str) -> None:
    for manifest in built(overlay):
        if manifest["kind"] not in CUSTOM:
            kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for pod in pods(overlay).values():
        kubernetes_validate.validate(pod, KUBERNETES, strict=True)


@needs_kubectl
def test_the_schemas_are_strict() -> None:
    [gateway] = [
        m for m in of_kind("overlays/cpu", "Deployment") if m["metadata"]["name"] == "gateway"
    ]
    wrong = json.loads(json.dumps(gateway).replace("readinessProbe", "readynessProbe"))
    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


@needs_kubectl
@overlays
def test_ports_and_paths(overlay: str) -> None:
    checked = 0
    for pod in pods(overlay).values():
        for container in containers(pod, first=False):
            image = image_of(container)
            named = {port["name"]: port["containerPort"] for port in container.get("ports", [])}
            assert set(named.values()) <= ports_of(image)
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                request = container.get(probe, {}).get("httpGet")
                if request:
                    port = request["port"]
                    assert named.get(port, port) in ports_of(image)
                    assert request["path"].partition("?")[0] in paths_of(image)
                    checked += 1
            scraped = pod["metadata"].get("annotations", {}).get("prometheus.io/port")
            if scraped:
                assert int(scraped) in named.values()
    assert checked


@needs_kubectl
@overlays
def test_services_lead_somewhere(overlay: str) -> None:
    for service in of_kind(overlay, "Service"):
        [pod] = selected(overlay, service["spec"]["selector"])
        [container] = containers(pod, first=False)
        named = {port["name"]: port["containerPort"] for port in container["ports"]}
        for port in service["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert named.get(target, target) in named.values()


@needs_kubectl
@overlays
def test_the_network_is_open_just_where_it_must_be(overlay: str) -> None:
    policies = {p["metadata"]["name"]: p["spec"] for p in of_kind(overlay, "NetworkPolicy")}
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    names = policies.pop("names")
    [asks] = names["podSelector"]["matchExpressions"]
    assert set(asks["values"]) == {"gateway", "haproxy", "worker"}
    assert {port["port"] for rule in names["egress"] for port in rule["ports"]} == {53}
    assert all(rule["to"] for rule in names["egress"])
    open_to: dict[tuple[str, int], set[str]] = {}
    for name, policy in policies.items():
        for pod in selected(overlay, policy["podSelector"].get("matchLabels", {})):
            [container] = containers(pod, first=False)
            for rule in policy.get("ingress", []):
                whom = {json.dumps(source, sort_keys=True) for source in rule["from"]}
                for port in rule["ports"]:
                    assert port["port"] in ports_of(image_of(container)), (name, port)
                    open_to.setdefault((image_of(container), port["port"]), set()).update(whom)
            for rule in policy.get("egress", []):
                for destination in rule["to"]:
                    for other in selected(overlay, destination["podSelector"]["matchLabels"]):
                        [target] = containers(other, first=False)
                        assert {p["port"] for p in rule["ports"]} <= ports_of(image_of(target))
    haproxy = '{"podSelector": {"matchLabels": {"app": "haproxy"}}}'
    gateway = '{"podSelector": {"matchLabels": {"app": "gateway"}}}'
    clients = '{"namespaceSelector": {"matchLabels": {"samserve.clients": "true"}}}'
    prometheus = (
        '{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}'
    )
    of_worker, of_haproxy = worker_ports(), haproxy_ports()
    assert open_to == {
        ("worker", of_worker["inference"]): {haproxy},
        ("worker", of_worker["management"]): {haproxy},
        ("worker", of_worker["ready"]): {haproxy},
        ("worker", of_worker["metrics"]): {prometheus},
        ("haproxy", of_haproxy["inference"]): {gateway},
        ("haproxy", of_haproxy["management"]): {gateway},
        ("haproxy", of_haproxy["operator"]): {prometheus},
        ("redis", 6379): {'{"podSelector": {"matchLabels": {"app": "worker"}}}'},
        ("gateway", Settings().port): {clients, prometheus},
    }


def selected(overlay: str, labels: dict[str, str]) -> list[Manifest]:
    matching = [
        pod for pod in pods(overlay).values() if labels.items() <= pod["metadata"]["labels"].items()
    ]
    assert matching, labels
    return matching


@needs_kubectl
@overlays
def test_variables(overlay: str) -> None:
    for pod in pods(overlay).values():
        for container in containers(pod):
            known = known_variables(image_of(container))
            ours = {n: v for n, v in environment(overlay, container).items() if "SAMSERVE" in n}
            if "models" in str(container.get("envFrom")):
                # Gateway and HAProxy share one ConfigMap, and each reads a part.
                known = known_variables("gateway") | known_variables("haproxy")
            assert set(ours) <= known, container["name"]
            if image_of(container) == "gateway":
                fields = {n.removeprefix("SAMSERVE_").lower(): v for n, v in ours.items()}
                settings = Settings.from_environ(ours)
                assert settings.torchserve_tokens == "off"
                assert fields["models"] == settings.models


@needs_kubectl
@overlays
def test_the_secret_is_a_secret(overlay: str) -> None:
    """Workers and HAProxy get it, nobody else does, and no manifest holds its value."""
    got: dict[str, dict[str, object]] = {}
    for name, pod in pods(overlay).items():
        for container in containers(pod):
            for entry in container.get("env", []):
                if entry["name"] in (SECRET, SECOND_SECRET):
                    assert set(entry) == {"name", "valueFrom"}
                    got.setdefault(f"{name}/{container['name']}", {})[entry["name"]] = entry[
                        "valueFrom"
                    ]["secretKeyRef"]
    needed = {"name": "worker-secret", "key": SECRET}
    second = {"name": "worker-secret", "key": SECOND_SECRET, "optional": True}
    workers = {f"{name}/worker" for name in pods(overlay) if name.startswith("worker-")}
    assert workers
    assert got == {
        "haproxy/haproxy": {SECRET: needed},
        **{name: {SECRET: needed, SECOND_SECRET: second} for name in workers},
    }
    assert not of_kind(overlay, "Secret")


@needs_kubectl
@overlays
def test_each_type_has_workers_that_haproxy_finds(overlay: str) -> None:
    by_name = {pod["spec"]["containers"][0]["name"]: pod for pod in pods(overlay).values()}
    models = environment(overlay, by_name["gateway"]["spec"]["containers"][0])
    types = models["SAMSERVE_MODELS"].split()
    assert types
    headless = {
        service["metadata"]["name"]: service["spec"]["selector"]
        for service in of_kind(overlay, "Service")
        if service["spec"].get("clusterIP") == "None"
    }
    names = {t: models[f"SAMSERVE_WORKERS_{t.upper()}"] for t in types}
    assert len([name for name in models if name.startswith("SAMSERVE_WORKERS_")]) == len(types)
    balancer = environment(overlay, by_name["haproxy"]["spec"]["containers"][0])
    assert balancer["SAMSERVE_WORKERS_DOMAIN"] == ".$(NAMESPACE).svc.cluster.local"
    for model_type, service in names.items():
        [pod] = selected(overlay, headless[service])
        for container in containers(pod):
            assert environment(overlay, container)["SAMSERVE_MODELS"] == model_type
        # where the Dockerfile puts the archives
        assert environment(overlay, container)["SAMSERVE_MODEL_STORE"] == "/app/model_store"
        assert "COPY model_store/${ARCHIVES} model_store/" in DOCKERFILE
    services = {s["metadata"]["name"]: s["spec"]["ports"] for s in of_kind(overlay, "Service")}
    offered = {port["name"]: f"http://haproxy:{port['port']}" for port in services["haproxy"]}
    assert offered == {
        "inference": models["SAMSERVE_INFERENCE_URL"],
        "management": models["SAMSERVE_MANAGEMENT_URL"],
    }


@needs_kubectl
@overlays
def test_the_config_is_ours_and_mounted_whole(overlay: str) -> None:
    files = {
        str(path.relative_to(ROOT / "config")): path.read_text()
        for path in (ROOT / "config").rglob("*")
        if path.suffix in (".properties", ".xml", ".yaml") and path.name != "kustomization.yaml"
    }
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(overlay, "ConfigMap")}
    for name, pod in pods(overlay).items():
        volumes = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
        for container in containers(pod):
            for mount in container.get("volumeMounts", []):
                assert mount["name"] in volumes, name
        if name.startswith("worker"):
            config = volumes["config"]["configMap"]
            data = maps[config["name"]]
            assert {item["path"]: data[item["key"]] for item in config["items"]} == files
            mounts = {m["mountPath"] for m in container["volumeMounts"] if m["name"] == "config"}
            assert mounts == {"/app/config"}
    assert HAPROXY in [data.get("haproxy.cfg") for data in maps.values()]


@needs_kubectl
@overlays
def test_every_pod_is_shut_in(overlay: str) -> None:
    for name, pod in pods(overlay).items():
        assert pod["spec"]["securityContext"]["runAsNonRoot"], name
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["enableServiceLinks"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod["spec"])
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert {"memory", "ephemeral-storage"} <= set(container["resources"]["limits"])
            assert {"cpu", "memory", "ephemeral-storage"} <= set(container["resources"]["requests"])
            disk = size(container["resources"]["limits"]["ephemeral-storage"])
            assert disk > sum(
                size(volume["emptyDir"]["sizeLimit"])
                for volume in pod["spec"].get("volumes", [])
                if "medium" not in volume.get("emptyDir", {"medium": ""})
            )
            if image_of(container) in ("gateway", "worker"):
                assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@needs_kubectl
@overlays
def test_nobody_is_stopped_before_the_longest_automask(overlay: str) -> None:
    longest = max(Settings().automask_timeout_s, worker.DRAIN_S + worker.NOTICE_S)
    for name, pod in pods(overlay).items():
        if name != "redis":
            grace = pod["spec"]["terminationGracePeriodSeconds"]
            [container] = pod["spec"]["containers"]
            before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
            assert grace > longest + before, name
            if name == "haproxy":
                [minutes] = re.findall(r"hard-stop-after (\d+)m", HAPROXY)
                assert grace > int(minutes) * 60 + before


@needs_kubectl
@pytest.mark.parametrize("overlay", [*OVERLAYS, *(f"workers/{name}" for name in MODEL_TYPES)])
def test_memory_suffices_for_what_is_kept_in_it(overlay: str) -> None:
    redis = read_conf(DEPLOY / "redis/redis.conf")
    assert redis["maxmemory-policy"] == "allkeys-lru"
    for name, pod in pods(overlay).items():
        container = pod["spec"]["containers"][-1]
        limit = size(container["resources"]["limits"]["memory"])
        if name == "redis":
            assert limit >= 1.2 * size(redis["maxmemory"])
        if image_of(container) == "gateway":
            budget = Settings.from_environ(environment(overlay, container)).body_budget()
            # Parsing copies bodies.
            assert limit >= 250 * 10**6 + 2 * budget
        if image_of(container) == "worker":
            [model_type] = environment(overlay, container)["SAMSERVE_MODELS"].split()
            [memory] = [v for v in pod["spec"]["volumes"] if v["name"] == "embeddings"]
            kept = model_settings(model_type).embedding_cache.machine_bytes
            assert memory["emptyDir"]["medium"] == "Memory"
            # The store fills at most nine tenths of a file system.
            assert 0.9 * size(memory["emptyDir"]["sizeLimit"]) >= kept
            # Every process and its decoder at their limits, TorchServe, the embeddings.
            gpu = "nvidia.com/gpu" in container["resources"]["limits"]
            process = PROCESS_BYTES.get(model_type, LARGE_PROCESS_BYTES) + ADDRESS_SPACE
            processes = 2 if gpu else 3  # configuration.two_prompt_workers_fit
            torchserve = 400 * 10**6
            embeddings = size(memory["emptyDir"]["sizeLimit"])
            weights = 0 if model_type == "vit_t" else MODEL_TYPES[model_type].n_bytes
            assert limit >= processes * process + torchserve + embeddings + weights


@needs_kubectl
@overlays
def test_one_scaler_each(overlay: str) -> None:
    deployments = {d["metadata"]["name"] for d in of_kind(overlay, "Deployment")}
    scaled = [
        scaler["spec"]["scaleTargetRef"]["name"]
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for scaler in of_kind(overlay, kind)
    ]
    assert sorted(scaled) == sorted(deployments - {"haproxy", "redis"})
    for scaler in of_kind(overlay, "ScaledObject"):
        model_type = scaler["metadata"]["name"].removeprefix("worker-").replace("-", "_")
        queries = [t["metadata"]["query"] for t in scaler["spec"]["triggers"] if t["type"] != "cpu"]
        lanes = [set(re.findall(r'lane="([^"]*)"', query)) for query in queries]
        assert lanes == [{model_type}, {f"{model_type}-automask"}]
    guarded = {p["metadata"]["name"] for p in of_kind(overlay, "PodDisruptionBudget")}
    assert guarded == deployments - {"redis"}


def read_conf(path: Path) -> dict[str, str]:
    lines = (line.split(None, 1) for line in path.read_text().splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[0] != "#"}
