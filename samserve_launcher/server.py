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
import subprocess
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import requests

from samserve.archives.build import unpack_archive
from samserve.archives.digests import DamagedArchive

from .access import addresses
from .checks import check_archives, check_ports
from .configuration import configuration
from .errors import ServerError
from .guard import remove
from .loopback import LoopbackSession
from .options import Options
from .processes import (
    STOP_TIMEOUT_S,
    Children,
    Guard,
    Processes,
    start_gateway,
    start_torchserve,
    stop,
)
from .supervision import how_it_ended

START_TIMEOUT_S = 300
LAST_LINES_S = 5.0
"""Longest wait for the exception of a worker that could not load its model."""

_EXCEPTION = re.compile(r"^((?:[\w.]+\.)?\w*(?:Error|Exception)\b.*)", re.MULTILINE)


@contextlib.contextmanager
def running(options: Options) -> Iterator[Processes]:
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
            children.start("gateway", lambda: start_gateway(options))
            state.write_text(json.dumps({**addresses(options), "pid": os.getpid()}))
            wait_until_ready(options, children, log, log_start)
            yield children
        finally:
            state.unlink(missing_ok=True)


@contextlib.contextmanager
def torchserve_running(options: Options, worker_host: str | None = None) -> Iterator[Processes]:
    """Run TorchServe while the block lasts. It has started, but its workers may still load.

    Processes that the block starts are stopped at the end, too.

    Args:
        worker_host: see `configuration`.

    Raises:
        ServerError: an archive is missing, or a port is taken.
    """
    check_archives(options)
    check_ports(options)
    options.run_root.mkdir(parents=True, exist_ok=True)
    config = options.run_dir / "config.properties"
    with (
        run_dir_to_itself(options) as lock,
        # A short path: it holds the workers' sockets, whose paths may have 107 bytes.
        tempfile.TemporaryDirectory(prefix=SCRATCH, ignore_cleanup_errors=True) as scratch,
    ):
        remove_leftovers(options)
        (options.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        scratch_note(options).write_text(scratch)
        with Guard([*files_while_running(options), Path(scratch)], lock.fileno()) as guard:
            children = Processes(guard)

            def start() -> subprocess.Popen[bytes]:
                # Before a restart, too: weights may have been registered since.
                unpack_archives(options)
                config.write_text(configuration(options, worker_host))
                alone = worker_host is not None
                return start_torchserve(options, config, scratch, alone=alone)

            try:
                children.start("torchserve", start)
                yield children
            finally:
                stop(children)
                for path in files_while_running(options):
                    remove(path)


SCRATCH = "samserve-"
"""The beginning of the name of a server's temporary folder."""


def scratch_note(options: Options) -> Path:
    """Return the file that names the temporary folder of a running server."""
    return options.run_dir / "scratch"


def files_while_running(options: Options) -> list[Path]:
    """Return the files and folders that a server has only while it runs.

    The folder of embeddings may be in /dev/shm, where files stay in memory until they are removed.
    """
    state = options.run_dir / "server.json"
    folders = [options.cache_dir, options.jobs_dir, options.pulse_dir, options.models_dir]
    return [state, options.key_file, scratch_note(options), *folders]


def remove_leftovers(options: Options) -> None:
    """Remove what a server on this port has left that was killed together with its guard."""
    note = scratch_note(options)
    if note.is_file():
        scratch = Path(note.read_text())
        if scratch.parent == Path(tempfile.gettempdir()) and scratch.name.startswith(SCRATCH):
            remove(scratch)
    for path in files_while_running(options):
        remove(path)


@contextlib.contextmanager
def run_dir_to_itself(options: Options) -> Iterator[IO[str]]:
    """Wait until no other server uses the run folder, and lock it while the block lasts.

    It yields the lock's file. A process that inherits its descriptor holds the lock, too.

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
        yield file


def unpack_archives(options: Options) -> None:
    """Unpack each archive into a folder of `models_dir`, from which TorchServe loads it.

    A folder that is there is complete: it was unpacked for an earlier start of this server's
    TorchServe, or when its weights were registered.

    Raises:
        ServerError: an archive is damaged, or there is no room.
    """
    for family in options.families():
        if (options.models_dir / family).is_dir():
            continue
        archive = options.model_store / f"{family}.mar"
        try:
            unpack_archive(archive, options.models_dir / family)
        except (DamagedArchive, OSError, zipfile.BadZipFile, zlib.error) as exc:
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
            raise ServerError(how_it_ended(name, child.returncode, options.run_dir / "logs"))


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
        # The file is shorter if it was full, and a new one was begun.
        file.seek(start if log.stat().st_size >= start else 0)
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
            exceptions += _EXCEPTION.findall(text)
    return exceptions
