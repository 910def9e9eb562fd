"""The door of `samserve worker`: an HAProxy through which all requests pass.

TorchServe 0.12.0 gets no more security patches. So it listens on loopback only, and HAProxy lets
nobody reach it who does not know the secret of the cluster (`worker-haproxy.cfg`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from pathlib import Path

from samserve import parents

from .errors import ServerError
from .options import LOOPBACK, Options, free_ports

SECRET = "SAMSERVE_WORKER_SECRET"
SECOND_SECRET = "SAMSERVE_WORKER_SECOND_SECRET"
"""A second secret that is accepted too, while the secret is being changed."""

MIN_LENGTH = 32
CONFIG = Path(__file__).with_name("worker-haproxy.cfg")
APIS = ("inference", "management", "metrics")


def take_secrets(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Return the secrets by the names of their variables, and remove them from `environ`.

    Processes that are started later do not inherit them.

    Raises:
        ServerError: there is no secret, or one is too short or has characters that a header lacks.
    """
    found = {name: environ.pop(name, "") for name in (SECRET, SECOND_SECRET)}
    if not found[SECRET]:
        raise ServerError(
            f"{SECRET} is not set. A worker admits only requests that carry this secret; "
            "deploy/README.md says how to make one."
        )
    secrets = {name: secret for name, secret in found.items() if secret}
    for name, secret in secrets.items():
        if len(secret) < MIN_LENGTH:
            raise ServerError(
                f"{name} has {len(secret)} characters; it needs at least {MIN_LENGTH}."
            )
        if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", secret):
            raise ServerError(f"{name} may have letters, digits and the characters ._~+/=- only.")
    return secrets


def behind_the_door(options: Options) -> tuple[Options, int]:
    """Return free ports on loopback: options with TorchServe's three, and the health server's.

    `port` of these options is the public one, after which the run folder is named.
    """
    public = {port for _, port in options.ports().values()}
    while True:
        free = free_ports(options)
        if public.isdisjoint(port for _, port in free.ports().values()):
            return replace(free, port=options.port), free.port


def start_door(
    options: Options, torchserve: Options, health_port: int, secrets: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Start HAProxy on the public ports. The kernel kills it when this process ends.

    Args:
        options: the public address and ports.
        torchserve: TorchServe's own ports.
        health_port: the health server's own port.
        secrets: what a request must carry one of.

    Raises:
        ServerError: HAProxy is not installed.
    """
    # Debian has it in a folder that is not on every user's path.
    program = shutil.which("haproxy", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise ServerError("HAProxy is not installed. A worker needs it in front of TorchServe.")
    host = f"[{options.host}]" if ":" in options.host else options.host
    public = {"ready": options.port, **_ports(options)}
    inside = {"ready": health_port, **_ports(torchserve)}
    environ = {
        **secrets,
        **{f"LISTEN_{api.upper()}": f"{host}:{port}" for api, port in public.items()},
        **{f"SERVER_{api.upper()}": f"{LOOPBACK}:{port}" for api, port in inside.items()},
    }
    wrapper = [sys.executable, "-I", "-S", parents.__file__, str(os.getpid())]
    return subprocess.Popen(
        [*wrapper, program, "-db", "-f", str(CONFIG)],
        env=environ,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _ports(options: Options) -> dict[str, int]:
    return {api: getattr(options, f"{api}_port") for api in APIS}
