"""The files of deploy/ fit their schemas, and every port, path, variable and file exists.

Kustomize comes with kubectl. Tests that need the built manifests are skipped without it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from samserve.serving.model_settings import ModelSettings
from samserve_gateway import app as gateway_app
from samserve_gateway.settings import Settings
from samserve_launcher import worker
from samserve_launcher.configuration import read_properties
from samserve_launcher.options import Options
from samserve_launcher.processes import GATEWAY_ENVIRONMENT
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
HAPROXY = (DEPLOY / "haproxy/haproxy.cfg").read_text()
DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
OVERLAYS = ["overlays/cpu", "overlays/cpu-keda", "overlays/gpu"]
KUBERNETES = "1.30"  # the oldest that deploy/README.md promises
CUSTOM = {"ScaledObject"}  # kinds without a schema in Kubernetes

Manifest = dict[str, Any]

needs_kubectl = pytest.mark.needs("kubectl")
overlays = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def built(overlay: str) -> list[Manifest]:
    """Return the manifests that `kubectl apply -k` would apply."""
    command = ["kubectl", "kustomize", str(DEPLOY / "kubernetes" / overlay)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(overlay: str, kind: str) -> list[Manifest]:
    return [manifest for manifest in built(overlay) if manifest["kind"] == kind]


def pods(overlay: str) -> dict[str, Manifest]:
    """Return each workload's pod template, as a Pod."""
    templates = {
        deployment["metadata"]["name"]: deployment["spec"]["template"]
        for deployment in of_kind(overlay, "Deployment")
    }
    return {
        name: {"apiVersion": "v1", "kind": "Pod", **template}
        for name, template in templates.items()
    }


def containers(pod: Manifest, *, first: bool = True) -> Iterator[Manifest]:
    yield from pod["spec"]["containers"]
    if first:
        yield from pod["spec"].get("initContainers", [])


def image_of(container: Manifest) -> str:
    """Return `worker`, `gateway`, or the name of a foreign image."""
    name = container["image"].partition(":")[0]
    return "worker" if name == "samserve-worker-cuda" else name.removeprefix("samserve-")


def environment(overlay: str, container: Manifest) -> dict[str, str]:
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(overlay, "ConfigMap")}
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= maps[source["configMapRef"]["name"]]
    return variables | {entry["name"]: entry["value"] for entry in container.get("env", [])}


# --- Ports, paths and variables -------------------------------------------------------------


def worker_ports() -> dict[str, int]:
    properties = read_properties((ROOT / "config/config.properties").read_text())
    ports = {
        api: int(properties[f"{api}_address"].rpartition(":")[2])
        for api in ("inference", "management", "metrics")
    }
    return {**ports, "ready": int(docker_environment("worker")["SAMSERVE_PORT"])}


def haproxy_ports() -> dict[str, int]:
    frontends = re.findall(r"^frontend (\w+).*\n    bind :(\d+)", HAPROXY, re.MULTILINE)
    return {name: int(port) for name, port in frontends}


def ports_of(image: str) -> set[int]:
    of_image = {
        "worker": set(worker_ports().values()),
        "gateway": {Settings().port},
        "haproxy": set(haproxy_ports().values()),
        "redis": {6379},
    }
    return of_image[image]


def paths_of(image: str) -> set[str]:
    """Return the paths of an image that answer GET."""
    if image == "gateway":
        routes = Path(gateway_app.__file__).parent / "routes"
        source = "".join(path.read_text() for path in routes.glob("*.py"))
        return set(re.findall(r'\bapp\.get\("(/[\w/]*)"', source))
    if image == "worker":
        source = Path(worker.__file__).read_text()
        return set(re.findall(r'web\.get\("(/\w+)"', source))
    return set(re.findall(r"if \{ path (/\w+) \}", HAPROXY))


def docker_environment(target: str) -> dict[str, str]:
    [stage] = re.findall(rf"^FROM base AS {target}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    [variables] = re.findall(r"^ENV (.*)$", stage, re.MULTILINE)
    return dict(pair.split("=", 1) for pair in variables.split())


def known_variables(image: str) -> set[str]:
    """Return the names of the variables SAMSERVE_… that an image reads."""
    code = "".join(
        path.read_text()
        for folder in ("handlers", "samserve_launcher", "config")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".xml")
    )
    of_image = {
        "gateway": {f"SAMSERVE_{name.upper()}" for name in Settings.model_fields},
        "worker": {f"SAMSERVE_{name.upper()}" for name in vars(Options())}
        | set(re.findall(r"SAMSERVE_(?:REDIS_URL|CACHE_DIRECTORY|CONSOLE_LEVEL)", code)),
        "haproxy": set(re.findall(r"defined\((\w+)\)", HAPROXY)),
    }
    return of_image.get(image, set())


# --- Kubernetes ----------------------------------------------------------------------------


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
                    assert request["path"] in paths_of(image)
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
    assert policies["closed"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    open_to: dict[tuple[str, int], set[str]] = {}
    for name, policy in policies.items():
        for pod in selected(overlay, policy["podSelector"].get("matchLabels", {})):
            [container] = containers(pod, first=False)
            for rule in policy.get("ingress", []):
                whom = {json.dumps(source, sort_keys=True) for source in rule.get("from", ["all"])}
                for port in rule["ports"]:
                    assert port["port"] in ports_of(image_of(container)), (name, port)
                    open_to.setdefault((image_of(container), port["port"]), set()).update(whom)
            for rule in policy.get("egress", []):
                for destination in rule.get("to", []):
                    for other in selected(overlay, destination["podSelector"]["matchLabels"]):
                        [target] = containers(other, first=False)
                        assert {p["port"] for p in rule["ports"]} <= ports_of(image_of(target))
    haproxy = '{"podSelector": {"matchLabels": {"app": "haproxy"}}}'
    gateway = '{"podSelector": {"matchLabels": {"app": "gateway"}}}'
    operator = '{"podSelector": {"matchLabels": {"samserve.operator": "true"}}}'
    prometheus = (
        '{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}'
    )
    of_worker, of_haproxy = worker_ports(), haproxy_ports()
    assert open_to == {
        ("worker", of_worker["inference"]): {haproxy},
        ("worker", of_worker["management"]): {haproxy, operator},
        ("worker", of_worker["ready"]): {haproxy},
        ("worker", of_worker["metrics"]): {prometheus},
        ("haproxy", of_haproxy["inference"]): {gateway},
        ("haproxy", of_haproxy["management"]): {gateway},
        ("haproxy", of_haproxy["operator"]): {prometheus},
        ("redis", 6379): {'{"podSelector": {"matchLabels": {"app": "worker"}}}'},
        ("gateway", Settings().port): {'"all"'},
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
    for model_type, name in names.items():
        service, namespace, rest = name.split(".", 2)
        assert (namespace, rest) == ("samserve", "svc.cluster.local")
        [pod] = selected(overlay, headless[service])
        for container in containers(pod):
            assert environment(overlay, container)["SAMSERVE_MODELS"] == model_type
        store = environment(overlay, container)["SAMSERVE_MODEL_STORE"]
        assert {m["mountPath"] for m in container["volumeMounts"]} >= {store}
    [redis] = [s for s in of_kind(overlay, "Service") if s["metadata"]["name"] == "redis"]
    url = environment(overlay, pod["spec"]["containers"][0])["SAMSERVE_REDIS_URL"]
    assert url == f"redis://redis:{redis['spec']['ports'][0]['port']}/0"
    balancer = {s["metadata"]["name"]: s["spec"]["ports"] for s in of_kind(overlay, "Service")}
    offered = {port["name"]: f"http://haproxy:{port['port']}" for port in balancer["haproxy"]}
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
        for container in containers(pod):
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"], name
            assert not context["allowPrivilegeEscalation"]
            assert context["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            if image_of(container) in ("gateway", "worker"):
                assert "/tmp" in {mount["mountPath"] for mount in container["volumeMounts"]}


@needs_kubectl
@overlays
def test_nobody_is_stopped_before_the_longest_automask(overlay: str) -> None:
    longest = max(Settings().automask_timeout_s, worker.DRAIN_S + worker.NOTICE_S)
    for name, pod in pods(overlay).items():
        if name != "redis":
            assert pod["spec"]["terminationGracePeriodSeconds"] > longest, name


@needs_kubectl
@overlays
def test_memory_suffices_for_what_is_kept_in_it(overlay: str) -> None:
    redis = read_conf(DEPLOY / "redis/redis.conf")
    assert redis["maxmemory-policy"] == "allkeys-lru"
    for name, pod in pods(overlay).items():
        container = pod["spec"]["containers"][-1]
        limit = size(container["resources"]["limits"]["memory"])
        if name == "redis":
            assert limit >= 1.2 * size(redis["maxmemory"])
        if image_of(container) == "worker":
            [model_type] = environment(overlay, container)["SAMSERVE_MODELS"].split()
            [memory] = [v for v in pod["spec"]["volumes"] if v["name"] == "embeddings"]
            kept = model_settings(model_type).embedding_cache.machine_bytes
            assert memory["emptyDir"]["medium"] == "Memory"
            # The store fills at most nine tenths of a file system.
            assert 0.9 * size(memory["emptyDir"]["sizeLimit"]) >= kept
            assert limit > 4 * kept


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
        lanes = [set(re.findall(r'model_name="([^"]*)"', query)) for query in queries]
        assert lanes == [{model_type}, {f"{model_type}-automask"}]
    guarded = {p["metadata"]["name"] for p in of_kind(overlay, "PodDisruptionBudget")}
    assert guarded == deployments - {"redis"}


# --- Docker, compose, HAProxy, Prometheus, Grafana -----------------------------------------


def test_the_dockerfile() -> None:
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in source.replace("${ARCHIVES}", "README.md").split():
            assert (ROOT / name).exists(), name
    assert GATEWAY_ENVIRONMENT.items() <= docker_environment("gateway").items()
    for target in ("gateway", "worker"):
        [stage] = re.findall(rf"^FROM base AS {target}$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
        exposed = {int(port) for port in re.findall(r"\d+", re.findall(r"EXPOSE (.*)", stage)[0])}
        assert exposed == ports_of(target)
        [(port, path)] = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", stage)
        assert int(port) in ports_of(target)
        assert path in paths_of(target)
        ours = {name for name in docker_environment(target) if name.startswith("SAMSERVE_")}
        assert ours <= known_variables(target)
        assert re.search(r"^USER [1-9]\d*$", stage, re.MULTILINE)


def test_the_images_hold_no_more_than_they_need() -> None:
    """The gateway imports no torch, and only packages of its extra."""
    heavy = (
        "torch torchvision segment_anything mobile_sam openvino timm "
        "numpy cv2 PIL shapely ts psutil yaml redis"
    )
    code = (
        "import sys, samserve_gateway.__main__, samserve_gateway.app\n"
        f"found = set({heavy.split()}) & set(sys.modules)\n"
        "sys.exit(' '.join(sorted(found)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'handlers'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_workers_image_has_every_file_that_a_start_reads(tmp_path: Path) -> None:
    """The files that the image copies, with the settings mounted as Kubernetes does."""
    [base] = re.findall(r"^FROM \S+ AS base$(.*?)(?=^FROM)", DOCKERFILE, re.M | re.S)
    [stage] = re.findall(r"^FROM base AS worker$(.*?)(?=^FROM|\Z)", DOCKERFILE, re.M | re.S)
    copied = re.findall(r"^COPY (?!--from)([\w./]+) \S+$", base + stage, re.MULTILINE)
    for name in copied:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / Path(name).name)
    (tmp_path / "config/__init__.py").unlink()
    code = (
        "from samserve import places; from samserve_launcher import worker\n"
        "print(places.config_folder(), places.handler_file(), worker.__file__, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{tmp_path / 'handlers'}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        str(tmp_path / name)
        for name in ("config", "handlers/sam_handler.py", "samserve_launcher/worker.py")
    ]


def test_compose() -> None:
    services = COMPOSE["services"]
    assert set(services) == {
        *("archives", "worker", "haproxy", "gateway", "redis", "prometheus", "grafana")
    }
    targets = set(re.findall(r"^FROM \S+ AS (\S+)$", DOCKERFILE, re.MULTILINE))
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"]
        patience = re.findall(r"^(\d+)m$", service["stop_grace_period"])[0]
        assert 60 * float(patience) > worker.DRAIN_S + worker.NOTICE_S
        assert set(service["networks"]) <= set(COMPOSE["networks"])
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source
            else:
                assert source == "/tmp" or source in COMPOSE["volumes"]
        if "build" in service:
            assert service["build"]["target"] in targets
            assert set(service["build"]["args"]) <= arguments
            assert (ROOT / service["build"]["dockerfile"]).exists()
        image = {"archives": "worker"}.get(name, name)
        ours = {n: v for n, v in service.get("environment", {}).items() if "SAMSERVE" in n}
        assert set(ours) <= known_variables(image), name
        for host, port in re.findall(r"\w+://(\w+):(\d+)", json.dumps(ours)):
            assert int(port) in ports_of(host), name
            assert set(services[host]["networks"]) & set(service["networks"])
    assert services["haproxy"]["environment"]["SAMSERVE_WORKERS_VIT_T"] in services
    # TorchServe and Redis need no token and no password, so only these may reach them.
    inside = {name for name, s in services.items() if "workers" in s["networks"]}
    assert inside == {"worker", "haproxy", "redis", "prometheus"}
    assert COMPOSE["networks"]["workers"]["internal"]
    kept = model_settings("vit_t").embedding_cache.machine_bytes
    assert 0.9 * size(services["worker"]["shm_size"]) >= kept


@pytest.mark.needs("haproxy")
def test_haproxys_configuration() -> None:
    types = re.findall(r"defined\(SAMSERVE_WORKERS_(\w+)\)", HAPROXY)
    assert {t.lower() for t in types} == {p.stem for p in (ROOT / "config/models").iterdir()}
    for some in (types[:1], types):
        environ = {f"SAMSERVE_WORKERS_{t}": "worker" for t in some}
        command = [str(shutil.which("haproxy")), "-c", "-f", str(DEPLOY / "haproxy/haproxy.cfg")]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "[WARNING]" not in done.stderr
    of_worker = worker_ports()
    assert set(re.findall(r'}:(\d+)"', HAPROXY)) == {
        str(of_worker["inference"]),
        str(of_worker["management"]),
    }
    assert set(re.findall(r"check port (\d+)", HAPROXY)) == {str(of_worker["ready"])}
    assert set(re.findall(r"httpchk GET (/\w+)", HAPROXY)) <= paths_of("worker")
    longest = Settings().automask_timeout_s
    for side in ("client", "server"):
        assert float(re.findall(rf"timeout {side} (\d+)s", HAPROXY)[0]) > longest
    assert 60 * float(re.findall(r"hard-stop-after (\d+)m", HAPROXY)[0]) > longest


def test_prometheus_and_its_alerts() -> None:
    config = yaml.safe_load((DEPLOY / "prometheus/prometheus.yml").read_text())
    scraped = {
        job["job_name"]: job["dns_sd_configs"][0]["port"] for job in config["scrape_configs"]
    }
    assert scraped == {
        "worker": worker_ports()["metrics"],
        "gateway": Settings().port,
        "haproxy": haproxy_ports()["operator"],
    }
    assert set(scraped) <= set(COMPOSE["services"])
    runbook = (DEPLOY / "README.md").read_text()
    rules = yaml.safe_load((DEPLOY / "prometheus/alerts.yml").read_text())["groups"][0]["rules"]
    for rule in rules:
        assert f"`{rule['alert']}`" in runbook


@pytest.mark.needs("promtool")
def test_prometheus_takes_its_configuration() -> None:
    command = ["promtool", "check", "config", str(DEPLOY / "prometheus/prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_named_is_one_of_ours() -> None:
    """The names are read from the code; `test_hosts` asks a real Prometheus for them."""
    text = "".join(
        path.read_text()
        for path in (
            DEPLOY / "prometheus/alerts.yml",
            DEPLOY / "grafana/dashboards/samserve.json",
            *DEPLOY.rglob("scaledobject.yaml"),
        )
    )
    named = set(re.findall(r"\b(?:samserve|ts)_[a-z_]+(?=[{\[)\s/,])", text))
    of_worker = (ROOT / "config/metrics.yaml").read_text()
    of_gateway = (ROOT / "samserve_gateway/metrics.py").read_text()
    assert len(named) > 15
    for name in named:
        base = re.sub(r"_(bucket|sum|count|total)$", "", name)
        ours = base.removeprefix("samserve_gateway_")
        assert base in of_worker if ours == base else f'prefix}}{ours}"' in of_gateway, name


def test_grafana_finds_what_it_shows() -> None:
    provisioning = DEPLOY / "grafana/provisioning"
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"
    dashboard = json.loads((DEPLOY / "grafana/dashboards/samserve.json").read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    for panel in panels:
        for target in panel.get("targets", []):
            assert target["datasource"]["uid"] == source["uid"]
    [provider] = yaml.safe_load((provisioning / "dashboards/samserve.yaml").read_text())[
        "providers"
    ]
    mounts = COMPOSE["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in mounts


def test_no_registry_is_named() -> None:
    hosts = r"(?:[\w-]+\.)+(?:io|com|org|dev)/[\w-]+/"
    for path in files_of(DEPLOY):
        text = path.read_text()
        images = re.findall(r"^\s*(?:- )?image: (\S+)", text, re.MULTILINE)
        assert not [image for image in images if re.match(hosts, image)], path


def files_of(folder: Path) -> Iterable[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def model_settings(model_type: str) -> ModelSettings:
    path = ROOT / "config/models" / f"{model_type}.yaml"
    return ModelSettings.from_yaml(yaml.safe_load(path.read_text()), {})


def read_conf(path: Path) -> dict[str, str]:
    lines = (line.split(None, 1) for line in path.read_text().splitlines())
    return {line[0]: line[1] for line in lines if len(line) == 2 and line[0] != "#"}


def size(text: str) -> int:
    """Return the bytes of a size as Kubernetes, Docker or Redis writes it."""
    number, unit = re.findall(r"^(\d+)(\w*)$", text)[0]
    units = {"": 1, "Mi": 2**20, "Gi": 2**30, "m": 2**20, "gb": 2**30, "mb": 2**20}
    return int(number) * units[unit]
