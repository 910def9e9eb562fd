"""Programs that some tests run and that `make` cannot install.

    @pytest.mark.needs("haproxy")            # or, for a module: pytestmark = pytest.mark.needs(…)
    @pytest.mark.needs("ip", "dnsmasq", root=True)

A test whose program is missing is skipped, with a line that says how to install it. With
`SAMSERVE_TESTS_NEED_ALL=1`, as in CI, it fails instead, so that CI skips no test.
"""

from __future__ import annotations

import os
import shutil
from functools import cache
from typing import NoReturn

import pytest

from bench.hosts import why_impossible

REQUIRED = "SAMSERVE_TESTS_NEED_ALL"

# Program -> Debian's package.
PACKAGES = {
    "base64": "coreutils",
    "chromium": "chromium",
    "curl": "curl",
    "debootstrap": "debootstrap",
    "dnsmasq": "dnsmasq-base",
    "g++": "g++",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "iptables": "iptables",
    "java": "default-jdk-headless",
    "javac": "default-jdk-headless",
    "npm": "npm",
    "openssl": "openssl",
    "kubectl": "kubernetes-client",
    "podman": "podman netavark aardvark-dns",
    "prometheus": "prometheus",
    "promtool": "prometheus",
    "runc": "runc",
    "redis-server": "redis-server",
    "systemd-analyze": "systemd",
}


def check(item: pytest.Item) -> None:
    """Skip the test, or fail it, if a program that its marks name is missing."""
    for mark in item.iter_markers("needs"):
        programs: tuple[str, ...] = mark.args
        reason = lack(programs, root=mark.kwargs.get("root", False))
        if reason is not None:
            unavailable(reason)


def unavailable(reason: str) -> NoReturn:
    """Skip the current test, or fail it if `SAMSERVE_TESTS_NEED_ALL` is set."""
    if os.environ.get(REQUIRED):
        pytest.fail(f"{reason} ({REQUIRED} is set)", pytrace=False)
    pytest.skip(reason)


@cache
def lack(programs: tuple[str, ...], *, root: bool) -> str | None:
    """Return the programs that this machine lacks, and how to install them; None if it has all.

    Args:
        root: whether the test makes network namespaces, which only root may do.
    """
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        packages = " ".join(dict.fromkeys(PACKAGES[program] for program in missing))
        return f"{', '.join(missing)} missing: `apt-get install {packages}`"
    return why_impossible() if root else None
