"""A server on this machine: it is checked, started, waited for, and stopped again.

`running(options)` does all of it, for `samserve serve`, the demo, the benchmarks and the tests.
A running server keeps its files in its run folder, `run/<port>/`: the configuration, TorchServe's
tokens, the logs, and `server.json`, in which `samserve scale` finds the addresses.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from samserve.archives.build import unpack_archive

from .checks import check_archives, check_ports
from .configuration import configuration
from .errors import ServerError
from .loopback import LoopbackSession
from .options import Options
from .processes import STOP_TIMEOUT_S, Children, addresses, start_gateway, start_torchserve, stop

START_TIMEOUT_S = 300
LAST_LINES_S = 5.0
"""Longest wait for the exception of a worker that could not load its model."""

_EXCEPTION = re.compile(r"^((?:[\w.]+\.)?\w*(?:Error|Exception)\b.*)", re.MULTILINE)


@contextlib.contextmanager
def running(options: Options) -> Iterator[Children]:
    """Run a server while the block lasts, and give its two processes once it is ready.

    Raises:
        ServerError: an archive is missing, a port is taken, a worker cannot load its model,
            or a process ended.
    """
    state = options.run_dir / "server.json"
    log = options.run_dir / "logs" / "torchserve.log"
    log_start = log.stat().st_size if log.exists() else 0
    with torchserve_running(options) as children:
        try:
            children["gateway"] = start_gateway(options)
            state.write_text(json.dumps({**addresses(options), "pid": os.getpid()}))
            wait_until_ready(options, children, log, log_start)
            yield children
        finally:
            state.unlink(missing_ok=True)


@contextlib.contextmanager
def torchserve_running(options: Options, worker_host: str | None = None) -> Iterator[Children]:
    """Run TorchServe while the block lasts. It has started, but its workers may still load.

    Processes that the block adds to the dictionary are stopped at the end, too.

    Args:
        worker_host: see `configuration`.

    Raises:
        ServerError: an archive is missing, or a port is taken.
    """
    check_archives(options)
    check_ports(options)
    options.run_root.mkdir(parents=True, exist_ok=True)
    config = options.run_dir / "config.properties"
    children: Children = {}
    with (
        run_dir_to_itself(options),
        # A short path: it holds the workers' sockets, whose paths may have 107 bytes.
        tempfile.TemporaryDirectory(prefix="samserve-", ignore_cleanup_errors=True) as scratch,
    ):
        unpack_archives(options)
        (options.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        config.write_text(configuration(options, worker_host))
        try:
            alone = worker_host is not None
            children["torchserve"] = start_torchserve(options, config, scratch, alone=alone)
            yield children
        finally:
            stop(children)
            options.key_file.unlink(missing_ok=True)
            # The folder may be in /dev/shm, where files stay in memory until they are removed.
            shutil.rmtree(options.cache_dir, ignore_errors=True)
            shutil.rmtree(options.jobs_dir, ignore_errors=True)
            shutil.rmtree(options.models_dir, ignore_errors=True)


@contextlib.contextmanager
def run_dir_to_itself(options: Options) -> Iterator[None]:
    """Wait until no other server uses the run folder, and lock it while the block lasts.

    A server that stops frees its ports seconds before it removes its files. Without this lock it
    would remove the files of a server that was started on the same port meanwhile.

    Raises:
        ServerError: another server still uses the folder after `STOP_TIMEOUT_S`.
    """
    lock = options.run_root / f".{options.port}.lock"
    deadline = time.monotonic() + STOP_TIMEOUT_S
    with lock.open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as exc:
                if time.monotonic() > deadline:
                    raise ServerError(
                        f"another server uses {options.run_dir} and does not stop. "
                        "Choose another port with --port or SAMSERVE_PORT."
                    ) from exc
                time.sleep(0.1)
        yield


def unpack_archives(options: Options) -> None:
    """Unpack each archive into a folder of `models_dir`, from which TorchServe loads it.

    Raises:
        ServerError: an archive is damaged, or there is no room.
    """
    shutil.rmtree(options.models_dir, ignore_errors=True)  # left by a server that was killed
    for family in options.families():
        archive = options.model_store / f"{family}.mar"
        try:
            unpack_archive(archive, options.models_dir / family)
        except (OSError, zipfile.BadZipFile, zlib.error) as exc:
            shutil.rmtree(options.models_dir, ignore_errors=True)
            raise ServerError(f"{archive} cannot be unpacked: {exc}") from exc


def wait_until_ready(options: Options, children: Children, log: Path, log_start: int) -> None:
    """Return once `GET /readyz` answers 200.

    Args:
        log: TorchServe's log file. This start writes what follows byte `log_start`.

    Raises:
        ServerError: a process ended, a worker cannot load its model, or `START_TIMEOUT_S` are over.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    lanes: dict[str, Any] = {}
    with LoopbackSession(timeout_s=10, certificate=options.tls_certificate) as http:
        while time.monotonic() < deadline:
            check_alive(options, children)
            check_loading(log, log_start)
            with contextlib.suppress(requests.RequestException):  # the gateway does not listen yet
                answer = http.get(f"{options.url}/readyz")
                if answer.status_code == 200:
                    return
                lanes = answer.json().get("lanes", {})  # none without a key
            time.sleep(0.25)
    states = ", ".join(f"{name} {lane['state']}" for name, lane in lanes.items())
    raise ServerError(
        f"not ready after {START_TIMEOUT_S} s ({states or 'the gateway does not answer'}). "
        f"The logs are in {options.run_dir / 'logs'}."
    )


def check_alive(options: Options, children: Children) -> None:
    """Check that every process runs.

    Raises:
        ServerError: a process has ended; the message has the end of its output.
    """
    for name, child in children.items():
        if child.poll() is not None:
            path = options.run_dir / "logs" / f"{name}-console.log"
            output = path.read_text(errors="replace")[-2000:]
            raise ServerError(
                f"{name} ended with status {child.returncode}; the end of its output:\n{output}"
            )


def check_loading(log: Path, log_start: int) -> None:
    """Check TorchServe's log for a worker that could not load its model.

    TorchServe restarts such a worker again and again, and only the log says why.

    Raises:
        ServerError: the message has the worker's exception.
    """
    if not log.exists():
        return
    if not _has_failed(_tail(log, log_start)):
        return
    # TorchServe reports the failure before it writes the worker's last lines to the log.
    deadline = time.monotonic() + LAST_LINES_S
    exceptions = exceptions_in(_tail(log, log_start))
    while not exceptions and time.monotonic() < deadline:
        time.sleep(0.1)
        exceptions = exceptions_in(_tail(log, log_start))
    why = "; ".join(dict.fromkeys(exceptions)) or "its process ended"
    raise ServerError(f"a worker cannot load its model: {why}. The whole log is in {log}.")


def _tail(log: Path, start: int) -> str:
    with log.open("rb") as file:
        file.seek(start)
        return file.read().decode(errors="replace")


def _has_failed(text: str) -> bool:
    return "Load model failed" in text or "Failed to load model" in text


def exceptions_in(log: str) -> list[str]:
    """Return the exceptions of workers in TorchServe's log, each as `Name: message`."""
    exceptions = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # Java's crash report is not JSON, nor is a half-written line
            continue
        # A line of a worker's logger, or of its standard output from before the logger is set up.
        if "lane" in entry or str(entry.get("thread")).endswith("-stdout"):
            text = f"{entry.get('message')}\n{entry.get('exception', '')}"
            exceptions += re.findall(
                r"^((?:[\w.]+\.)?\w*(?:Error|Exception)\b.*)", text, re.MULTILINE
            )
    return exceptions
