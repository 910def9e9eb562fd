"""The files of deploy/ as data: manifests, and the ports, paths and variables of each image."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from samserve.archives.settings import settings_of
from samserve.serving.model_settings import ModelSettings
from samserve_gateway import app as gateway_app
from samserve_gateway.settings import Settings
from samserve_launcher import worker
from samserve_launcher.configuration import read_properties
from samserve_launcher.options import Options
from tests.support.paths import ROOT

DEPLOY = ROOT / "deploy"
HAPROXY = (DEPLOY / "haproxy/haproxy.cfg").read_text()
DOCKERFILE = (DEPLOY / "docker/Dockerfile").read_text().replace("\\\n", " ")

Manifest = dict[str, Any]


@cache
def built(overlay: str) -> list[Manifest]:
    """Return the manifests that `kubectl apply -k` would apply."""
    return rendered(DEPLOY / "kubernetes" / overlay)


def rendered_with(folder: Path, overlay: str, lines: str) -> list[Manifest]:
    """Return the manifests of an overlay of one's own, in an empty folder, on top of one of ours.

    Args:
        lines: more lines of its kustomization.yaml, where {kubernetes} is deploy/kubernetes.
    """
    kubernetes = os.path.relpath(DEPLOY / "kubernetes", folder)
    text = f"resources: [{kubernetes}/{overlay}]\n{lines}\n".replace("{kubernetes}", kubernetes)
    (folder / "kustomization.yaml").write_text(text)
    return rendered(folder)


def rendered(folder: Path) -> list[Manifest]:
    command = ["kubectl", "kustomize", str(folder)]
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
    name: str = container["image"].partition(":")[0]
    return name.removeprefix("samserve-").removesuffix("-cuda")


def environment(overlay: str, container: Manifest) -> dict[str, str]:
    maps = {m["metadata"]["name"]: m["data"] for m in of_kind(overlay, "ConfigMap")}
    variables: dict[str, str] = {}
    for source in container.get("envFrom", []):
        variables |= maps[source["configMapRef"]["name"]]
    # A value from a Secret is in no manifest.
    return variables | {entry["name"]: entry.get("value", "") for entry in container.get("env", [])}


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
        | set(
            re.findall(
                r"SAMSERVE_(?:REDIS_URL|CACHE_DIRECTORY|CONSOLE_LEVEL|WORKER_(?:SECOND_)?SECRET)",
                code,
            )
        ),
        "haproxy": set(re.findall(r"(?:defined\(|\$\{)(\w+)", HAPROXY)),
    }
    return of_image.get(image, set())


def model_settings(model_type: str) -> ModelSettings:
    return ModelSettings.from_yaml(settings_of(model_type), {})


def size(text: str) -> int:
    """Return the bytes of a size as Kubernetes, Docker or Redis writes it."""
    number, unit = re.findall(r"^(\d+)(\w*)$", text)[0]
    units = {"": 1, "Mi": 2**20, "Gi": 2**30, "gb": 2**30, "mb": 2**20, "g": 2**30, "m": 2**20}
    return int(number) * units[unit]
