"""This module checks, before a server starts, that its archives and its ports are there."""

from __future__ import annotations

import errno
import socket

import psutil

from .errors import ServerError
from .options import Options


def check_archives(options: Options) -> None:
    """Check that each model type has its archive.

    Raises:
        ServerError: an archive is missing; the message names the command that builds it.
    """
    for model in options.model_types():
        archive = options.model_store / f"{model}.mar"
        if not archive.is_file():
            raise ServerError(f"{archive} is missing; `samserve archive {model}` builds it.")


def check_ports(options: Options) -> None:
    """Check that every port is free.

    Raises:
        ServerError: a port is taken. The message names the process that holds it, and the flag
            that changes it.
    """
    names: dict[int, str] = {}
    for name, (_, port) in options.ports().items():
        if port in names:
            flags = f"--{names[port]} and --{name}".replace("_", "-")
            raise ServerError(f"{flags} are both {port}; choose different ports.")
        names[port] = name
    for name, (host, port) in options.ports().items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as exc:
                reason, setting = holder_of(port), name
                if exc.errno != errno.EADDRINUSE:
                    # Not an address of this machine, or a port that only root may open.
                    reason, setting = exc.strerror or str(exc), f"host or --{name}"
                raise ServerError(
                    f"port {port} on {host} cannot be used: {reason}. "
                    f"Choose another with --{setting.replace('_', '-')} or SAMSERVE_{name.upper()}."
                ) from exc


def holder_of(port: int) -> str:
    """Return a sentence about the process that listens on a TCP port."""
    try:
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN
            if listening and connection.laddr.port == port and connection.pid is not None:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} holds it, {command[:120]}"
    except psutil.Error:
        pass  # the process has just ended, or the system hides it
    return "this user cannot see which process holds it"
