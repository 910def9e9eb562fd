"""An offline folder has all images that compose needs, under the names that compose.yaml uses.

podman builds and saves them, and loads them into an empty store. No registry is asked.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from scripts import create_venv, prepare_offline
from tests.support.podman import BASE, RUN, Podman, prepared_podman

pytestmark = pytest.mark.needs("podman", "runc", "iptables", "debootstrap", root=True)


@pytest.fixture
def podman(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Podman]:
    """podman, and a clone of what an image is made of, in which `prepare_offline` works."""
    folder = tmp_path / "clone"
    folder.mkdir()
    with prepared_podman(folder, whole=False) as podman:
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
        subprocess.run(["git", "add", "deploy", "config"], cwd=folder, check=True)
        (folder / "weights").mkdir()
        for name, value in podman.environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(create_venv, "ROOT", folder)
        # test_create_venv.py tests the packages, which are 3 GB.
        monkeypatch.setattr(prepare_offline, "download_packages", lambda *_: None)
        yield podman


def images_of(compose: Path) -> set[str]:
    services = yaml.safe_load(compose.read_text())["services"].values()
    return {service["image"].replace("${TORCH_BACKEND:-cpu}", "cuda") for service in services}


def test_every_image_of_compose_comes_from_a_file(
    podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some have a digest behind the tag, as after `make pin-images`."""
    compose = podman.folder / prepare_offline.COMPOSE
    # Debian has no Grafana.
    [grafana] = [image for image in images_of(compose) if "grafana" in image]
    podman.run("tag", BASE, f"localhost/{grafana}")
    for image in ("haproxy:3.2", "redis:8"):
        digest = podman.run("image", "inspect", "--format", "{{.Digest}}", image)
        compose.write_text(compose.read_text().replace(image, f"{image}@{digest}"))
    folder = tmp_path / "offline"
    monkeypatch.setattr("sys.argv", ["", "--to", str(folder), "--engine", "podman"])
    empty = ("--root", str(tmp_path / "root"), "--runroot", f"{RUN}/empty")
    try:
        assert prepare_offline.main() == 0
        for file in sorted((folder / "images").iterdir()):
            podman.run(*empty, "load", "--input", str(file))
            file.unlink()
        for image in images_of(folder / prepare_offline.COMPOSE):
            podman.run(*empty, "image", "exists", image)
        [worker] = [image for image in images_of(compose) if "worker" in image]
        listed = podman.run(*empty, "run", "--rm", "--network", "none", worker, "ls", "model_store")
        assert "vit_t.mar" in listed.split()  # so that its container fetches nothing
    finally:
        podman.run(*empty, "rmi", "--all", "--force", check=False)
        shutil.rmtree(folder)  # 3 GB
        podman.run("rmi", f"localhost/{grafana}", check=False)
