"""API keys in compose and on Kubernetes: the gateway reads a file of them, and is not open."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from samserve_gateway.access_modes import check_access
from samserve_gateway.keys import Key, KeysFileError, add, digest_of
from samserve_gateway.settings import Settings
from tests.support.deployment import DEPLOY


def settings_of(environment: dict[str, str]) -> Settings:
    return Settings.from_environ({"SAMSERVE_HOST": "0.0.0.0", **environment})


@pytest.mark.needs("kubectl")
@pytest.mark.parametrize("overlay", ["cpu", "cpu-keda", "gpu"])
def test_the_component_for_kubernetes(overlay: str, tmp_path: Path) -> None:
    kubernetes = os.path.relpath(DEPLOY / "kubernetes", tmp_path)
    (tmp_path / "kustomization.yaml").write_text(
        f"resources: [{kubernetes}/overlays/{overlay}]\n"
        f"components: [{kubernetes}/components/keys]\n"
    )
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, check=True
    )
    [gateway] = [
        manifest
        for manifest in yaml.safe_load_all(done.stdout)
        if (manifest["kind"], manifest["metadata"]["name"]) == ("Deployment", "gateway")
    ]
    kubernetes_validate.validate(gateway, "1.30", strict=True)
    pod = gateway["spec"]["template"]["spec"]
    [container] = pod["containers"]
    environment = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert "SAMSERVE_OPEN" not in environment
    assert environment["SAMSERVE_INFERENCE_URL"]
    [mount] = [each for each in container["volumeMounts"] if each["name"] == "keys"]
    [volume] = [each for each in pod["volumes"] if each["name"] == "keys"]
    assert Path(environment["SAMSERVE_API_KEYS_FILE"]).parent == Path(mount["mountPath"])
    assert volume["secret"]["secretName"] == "api-keys"
    assert not volume["secret"]["defaultMode"] & 0o022  # the gateway refuses such a file


def test_compose_with_keys(tmp_path: Path) -> None:
    base, keys = (
        yaml.safe_load((DEPLOY / name).read_text())["services"]["gateway"]
        for name in ("compose.yaml", "compose.keys.yaml")
    )
    merged: dict[str, Any] = {**base["environment"], **keys["environment"]}
    [volume] = keys["volumes"]
    host, container, mode = volume.split(":")
    assert (host, mode) == ("./keys", "ro")
    file = Path(merged["SAMSERVE_API_KEYS_FILE"])
    assert file.parent == Path(container)
    here = tmp_path / file.name
    merged["SAMSERVE_API_KEYS_FILE"] = str(here)
    with pytest.raises(KeysFileError):
        check_access(settings_of(merged))
    add(here, Key("alice", digest_of(b"alice")))
    here.chmod(0o644)
    assert check_access(settings_of(merged)) == "keys"
    assert check_access(settings_of(base["environment"])) == "open"
