"""Docker, compose, HAProxy, Prometheus and Grafana: every port, path, variable and file exists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from samserve.model_types import MODEL_TYPES
from samserve_gateway.settings import Settings
from samserve_launcher import worker
from samserve_launcher.door import CONFIG, SECRET
from samserve_launcher.processes import GATEWAY_ENVIRONMENT
from tests.support.deployment import (
    DEPLOY,
    DOCKERFILE,
    HAPROXY,
    Manifest,
    built,
    docker_environment,
    haproxy_ports,
    known_variables,
    model_settings,
    paths_of,
    ports_of,
    size,
    worker_ports,
)
from tests.support.paths import ROOT

COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, Manifest] = COMPOSE["services"]
CONTEXT = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
"""What a build sees of the repository."""


def test_the_dockerfile() -> None:
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for name in source.replace("${ARCHIVES}", "README.md").split():
            assert (ROOT / name).exists(), name
            assert any(name == kept or name.startswith(f"{kept}/") for kept in CONTEXT), name
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
            assert set(service["build"]["args"]) == arguments
            assert (ROOT / service["build"]["dockerfile"]).exists()
        image = {"archives": "worker"}.get(name, name)
        ours = {n: v for n, v in service.get("environment", {}).items() if "SAMSERVE" in n}
        assert set(ours) <= known_variables(image), name
        for host, port in re.findall(r"\w+://(\w+):(\d+)", json.dumps(ours)):
            assert int(port) in ports_of(host), name
            assert set(services[host]["networks"]) & set(service["networks"])
    assert services["haproxy"]["environment"]["SAMSERVE_WORKERS_VIT_T"] in services
    kept = model_settings("vit_t").embedding_cache.machine_bytes
    assert 0.9 * size(services["worker"]["shm_size"]) >= kept


def test_networks_have_only_containers_that_talk_to_each_other() -> None:
    members = {
        network: {name for name, service in SERVICES.items() if network in service["networks"]}
        for network in COMPOSE["networks"]
    }
    assert members == {
        "internet": {"archives", "gateway", "grafana"},
        "gateway": {"gateway", "haproxy", "prometheus"},
        "workers": {"haproxy", "worker"},
        "embeddings": {"redis", "worker"},
        "metrics": {"prometheus", "worker"},
        "dashboards": {"grafana", "prometheus"},
    }
    for name, network in COMPOSE["networks"].items():
        assert network.get("internal", False) == (name != "internet")


def test_secrets_come_from_files_that_only_their_maker_reads(tmp_path: Path) -> None:
    """Compose refuses to start if a file of `env_file` is missing."""
    files = {name: s["env_file"] for name, s in SERVICES.items() if "env_file" in s}
    assert files == {
        "worker": ["worker-secret.env", "redis-secret.env"],
        "haproxy": ["worker-secret.env"],
        "redis": ["redis-secret.env"],
    }
    (tmp_path / "docker").mkdir()
    script = Path(shutil.copy(DEPLOY / "docker/make-secrets.sh", tmp_path / "docker"))
    made: list[dict[str, str]] = []
    for _ in range(2):
        subprocess.run(["sh", str(script)], check=True)
        lines = "".join(path.read_text() for path in sorted(tmp_path.glob("*.env"))).split()
        made.append(dict(line.split("=", 1) for line in lines))
    first, again = made
    assert first == again
    assert set(first) == {SECRET, "REDIS_PASSWORD", "SAMSERVE_REDIS_URL"}
    assert first["SAMSERVE_REDIS_URL"] == f"redis://:{first['REDIS_PASSWORD']}@redis:6379/0"
    assert first[SECRET] != first["REDIS_PASSWORD"]
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    for path in tmp_path.glob("*.env"):
        assert path.stat().st_mode & 0o777 == 0o600
        assert f"/deploy/{path.name}" in ignored
    for service in SERVICES.values():
        assert not set(first) & set(service.get("environment", {}))


def test_our_images_have_a_version_and_a_kind() -> None:
    version = metadata.version("samserve")
    assert SERVICES["gateway"]["image"] == f"samserve-gateway:{version}"
    assert SERVICES["worker"]["image"] == f"samserve-worker:{version}-${{TORCH_BACKEND:-cpu}}"
    assert SERVICES["worker"]["build"]["args"]["TORCH_BACKEND"] == "${TORCH_BACKEND:-cpu}"
    gpu = yaml.safe_load((DEPLOY / "compose.gpu.yaml").read_text())["services"]
    assert gpu["worker"]["image"] == f"samserve-worker:{version}-cuda"
    assert gpu["worker"]["build"]["args"] == {"TORCH_BACKEND": "cuda"}
    for worker_image in (SERVICES, gpu):
        assert worker_image["archives"]["image"] == worker_image["worker"]["image"]


def test_no_container_takes_all_memory_or_fills_the_disk_with_logs() -> None:
    for name, service in SERVICES.items():
        assert size(service["mem_limit"]) > 0, name
        options = service["logging"]["options"]
        assert size(options["max-size"]) * int(options["max-file"]) <= 100 * 2**20
        if name not in ("archives", "worker", "gateway"):  # the images of these have theirs
            assert service["healthcheck"]["test"], name
    content = re.findall(r"^maxmemory (\w+)$", (DEPLOY / "redis/redis.conf").read_text(), re.M)[0]
    assert size(SERVICES["redis"]["mem_limit"]) >= 1.2 * size(content)


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("name", ["worker", "gateway", "haproxy", "redis"])
def test_memory_is_bounded_as_on_kubernetes(name: str) -> None:
    [limit] = {
        size(container["resources"]["limits"]["memory"])
        for manifest in built("overlays/cpu")
        if manifest["kind"] == "Deployment"
        for container in manifest["spec"]["template"]["spec"]["containers"]
        if container["name"] == name
    }
    assert size(SERVICES[name]["mem_limit"]) == limit


def test_nobody_can_log_in_to_grafana() -> None:
    """With a login form that is off, Grafana's API still takes admin:admin as basic auth."""
    environment = SERVICES["grafana"]["environment"]
    assert environment["GF_AUTH_BASIC_ENABLED"] == "false"
    assert environment["GF_AUTH_DISABLE_LOGIN_FORM"] == "true"
    assert environment["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert environment["GF_USERS_ALLOW_SIGN_UP"] == "false"
    assert environment["GF_AUTH_ANONYMOUS_ORG_ROLE"] == "Viewer"


@pytest.mark.needs("haproxy")
@pytest.mark.parametrize("environ", [{}, {SECRET: ""}])
def test_haproxy_does_not_start_without_the_secret(environ: dict[str, str]) -> None:
    command = [str(shutil.which("haproxy")), "-c", "-f", str(DEPLOY / "haproxy/haproxy.cfg")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"{SECRET} is not set" in done.stderr


@pytest.mark.needs("haproxy")
def test_haproxys_configuration() -> None:
    types = re.findall(r"defined\(SAMSERVE_WORKERS_(\w+)\)", HAPROXY)
    assert {t.lower() for t in types} == set(MODEL_TYPES)
    for some in (types[:1], types):
        environ = {f"SAMSERVE_WORKERS_{t}": "worker" for t in some}
        environ["SAMSERVE_WORKER_SECRET"] = "s3cret-" * 6
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
    asked = re.findall(
        r"http-check connect(?: port (\d+))?\n +http-check send .*uri (/\w+)", HAPROXY
    )
    assert asked == [
        *(("", "/readyz"), (str(of_worker["inference"]), "/healthz")),
        *(("", "/readyz"), (str(of_worker["management"]), "/healthz")),
    ]
    assert "/readyz" in paths_of("worker")
    assert "{ path /healthz }" in CONFIG.read_text()
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
