"""The processes of one server: checked, started, waited for, and all stopped again.

`running(options)` is the whole of it; `serve` and `demo` stand on it. What a server leaves
while it runs lies in `run/<port>/`: the configuration in force, TorchServe's tokens, the
logs, and `server.json`, by which `scale` finds it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import requests

from samserve import places
from samserve.archives.build import unpack_archive
from samserve.machine import usable_cores
from samserve.serving.lanes import Mode, lane_of, mode_of, model_type_of
from samserve_gateway.settings import ADMIN_TOKEN

from .java import java_home
from .loopback import LoopbackSession
from .options import LOOPBACK, Options

START_TIMEOUT_S = 300
STOP_TIMEOUT_S = 20

WORKER_ENVIRONMENT = {
    # glibc would give every large tensor fresh pages and take them back, which costs more
    # than the arithmetic on them; a worker keeps its pages instead.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # A thread that waits must not spin: the other lane can use its core.
    "OMP_WAIT_POLICY": "PASSIVE",
    # What Apple's GPU cannot do is done by the CPU, not refused.
    **({"PYTORCH_ENABLE_MPS_FALLBACK": "1"} if sys.platform == "darwin" else {}),
}

GATEWAY_ENVIRONMENT = {
    # For the same reason it keeps the pages of bodies, unless they are uncommonly large.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}

Children = dict[str, "subprocess.Popen[bytes]"]


class ServerError(Exception):
    """The server cannot start, or ended by itself; the message says why."""


@contextlib.contextmanager
def running(options: Options) -> Iterator[Children]:
    """A ready server, for as long as the block lasts; gives its two processes.

    Raises:
        ServerError: an archive is missing, a port is taken, a worker cannot load its model,
            or a process ended.
    """
    state = options.run_dir / "server.json"
    log = options.run_dir / "logs" / "torchserve.log"
    log_start = log.stat().st_size if log.exists() else 0
    with torchserve_running(options) as children:
        try:
            children["gateway"] = _start_gateway(options)
            state.write_text(json.dumps({**_addresses(options), "pid": os.getpid()}))
            wait_until_ready(options, children, log, log_start)
            yield children
        finally:
            state.unlink(missing_ok=True)


@contextlib.contextmanager
def torchserve_running(options: Options, worker_host: str | None = None) -> Iterator[Children]:
    """TorchServe alone, started but hardly ready; whatever else the block adds is stopped too.

    Args:
        worker_host: as `configuration`'s.

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
        # Short, for it holds the workers' sockets, whose paths may have 107 bytes.
        tempfile.TemporaryDirectory(prefix="samserve-", ignore_cleanup_errors=True) as scratch,
    ):
        unpack_archives(options)
        (options.run_dir / "logs").mkdir(parents=True, exist_ok=True)
        config.write_text(configuration(options, worker_host))
        try:
            alone = worker_host is not None
            children["torchserve"] = _start_torchserve(options, config, scratch, alone=alone)
            yield children
        finally:
            stop(children)
            options.key_file.unlink(missing_ok=True)
            # It may be memory, which nobody would ever give back.
            shutil.rmtree(options.cache_dir, ignore_errors=True)
            shutil.rmtree(options.jobs_dir, ignore_errors=True)
            shutil.rmtree(options.models_dir, ignore_errors=True)


@contextlib.contextmanager
def run_dir_to_itself(options: Options) -> Iterator[None]:
    """Wait until no other server uses the run folder, and keep others out within the block.

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


def check_archives(options: Options) -> None:
    """Raises ServerError, naming the command that builds a missing one."""
    for model in options.model_types():
        archive = options.model_store / f"{model}.mar"
        if not archive.is_file():
            raise ServerError(f"{archive} is missing; `make archive TYPE={model}` builds it.")


def unpack_archives(options: Options) -> None:
    """Each archive to a folder in `models_dir`, from where TorchServe takes it.

    Raises:
        ServerError: an archive is damaged, or there is no room.
    """
    shutil.rmtree(options.models_dir, ignore_errors=True)  # a server that was killed left it
    for family in options.families():
        archive = options.model_store / f"{family}.mar"
        try:
            unpack_archive(archive, options.models_dir / family)
        except (OSError, zipfile.BadZipFile, zlib.error) as exc:
            shutil.rmtree(options.models_dir, ignore_errors=True)
            raise ServerError(f"{archive} cannot be unpacked: {exc}") from exc


def check_ports(options: Options) -> None:
    """Raises ServerError, naming the port, who holds it and the flag that changes it."""
    for name, (host, port) in options.ports().items():
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as exc:
                reason, setting = holder_of(port), name
                if exc.errno != errno.EADDRINUSE:
                    # an address that is not this machine's, or a port that only root may have
                    reason, setting = exc.strerror or str(exc), f"host or --{name}"
                raise ServerError(
                    f"port {port} on {host} cannot be used: {reason}. "
                    f"Choose another with --{setting.replace('_', '-')} or SAMSERVE_{name.upper()}."
                ) from exc


def holder_of(port: int) -> str:
    """Who listens on a TCP port, in words."""
    try:
        for connection in psutil.net_connections("tcp"):
            listening = connection.status == psutil.CONN_LISTEN
            if listening and connection.laddr.port == port and connection.pid is not None:
                command = " ".join(psutil.Process(connection.pid).cmdline())
                return f"process {connection.pid} holds it, {command[:120]}"
    except psutil.Error:
        pass  # it has just gone, or this system does not tell
    return "this user cannot see who holds it"


def read_properties(text: str) -> dict[str, str]:
    """Java properties as far as ours go: comments, `key=value`, lines continued by a backslash."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))
    return {key.strip(): value.strip() for key, value in pairs}


def configuration(options: Options, worker_host: str | None = None) -> str:
    """config/config.properties, and after it the lines that these options change.

    Args:
        worker_host: the address of all its APIs where it is one of several behind a balancer:
            then they want no tokens, and only the network guards them. None: the machine's only
            one, on loopback and with tokens.
    """
    text = (places.config_folder() / "config.properties").read_text()
    lanes = json.loads(read_properties(text)["models"])
    for lane, family in options.lanes().items():
        # Registered weights have what their type's own have.
        like = lane_of(model_type_of(lane), mode_of(lane))
        if like not in lanes:
            raise ServerError(f"config/config.properties has no lane {like} under `models`.")
        lanes[lane] = {
            version: {**settings, "marName": f"{family}.mar"}
            for version, settings in lanes[like].items()
        }
        prompts = mode_of(lane) == "prompt"
        wanted = options.prompt_workers if prompts else options.automask_workers
        if wanted is not None:
            for version in lanes[lane].values():
                version.update(minWorkers=wanted, maxWorkers=wanted)
    host = worker_host or LOOPBACK
    registers = worker_host is None and bool(os.environ.get(ADMIN_TOKEN))
    changes = {
        "inference_address": f"http://{host}:{options.inference_port}",
        "management_address": f"http://{host}:{options.management_port}",
        "metrics_address": f"http://{host}:{options.metrics_port}",
        "metrics_config": places.config_folder() / "metrics.yaml",
        "grpc_inference_port": options.grpc_inference_port,
        "grpc_management_port": options.grpc_management_port,
        "model_store": options.models_dir,
        "load_models": ",".join(f"{lane}={family}" for lane, family in options.lanes().items()),
        "models": json.dumps(lanes),
        # The gateway registers weights only for who has its administrator's token; without tokens
        # anybody could.
        "enable_model_api": "true" if registers else "false",
        "allowed_urls": f"file://{options.models_dir}/.*",
        "disable_token_authorization": "false" if worker_host is None else "true",
    }
    lines = "\n".join(f"{key}={value}" for key, value in changes.items())
    return f"{text}\n# --- From the options of this start.\n{lines}\n"


def threads_per_worker(config: str) -> dict[Mode, int]:
    """Mode -> threads of each of its workers, so that a lane's workers together fill the cores."""
    properties = read_properties(config)
    lanes = json.loads(properties["models"])
    most: dict[Mode, int] = {"prompt": 1, "automask": 1}
    for loaded in properties["load_models"].split(","):
        lane = loaded.split("=")[0]
        mode = mode_of(lane)
        most[mode] = max(most[mode], *(v["minWorkers"] for v in lanes[lane].values()))
    return {mode: max(1, usable_cores() // workers) for mode, workers in most.items()}


def wait_until_ready(options: Options, children: Children, log: Path, log_start: int) -> None:
    """Returns once `GET /readyz` says ready.

    Args:
        log: TorchServe's log, of which this start writes what follows byte `log_start`.

    Raises:
        ServerError: a process ended, a worker cannot load its model, or the time is over.
    """
    deadline = time.monotonic() + START_TIMEOUT_S
    lanes: dict[str, Any] = {}
    with LoopbackSession(timeout_s=10) as http:
        while time.monotonic() < deadline:
            check_alive(options, children)
            check_loading(log, log_start)
            with contextlib.suppress(requests.RequestException):  # the gateway is not up yet
                answer = http.get(f"{options.url}/readyz")
                if answer.status_code == 200:
                    return
                lanes = answer.json()["lanes"]
            time.sleep(0.25)
    states = ", ".join(f"{name} {lane['state']}" for name, lane in lanes.items())
    raise ServerError(
        f"not ready after {START_TIMEOUT_S} s ({states or 'the gateway does not answer'}). "
        f"The logs are in {options.run_dir / 'logs'}."
    )


def check_alive(options: Options, children: Children) -> None:
    """Raises ServerError, with the end of what it said, if a process has ended."""
    for name, child in children.items():
        if child.poll() is not None:
            said = (options.run_dir / "logs" / f"{name}-console.log").read_text(errors="replace")
            raise ServerError(
                f"{name} ended with status {child.returncode}; its last words:\n{said[-2000:]}"
            )


def check_loading(log: Path, log_start: int) -> None:
    """Raises ServerError, with the worker's own words, if one could not load its model.

    TorchServe would start it again and again, and only its log would say why.
    """
    if not log.exists():
        return
    with log.open("rb") as file:
        file.seek(log_start)
        said = file.read().decode(errors="replace")
    if "Load model failed" in said or "Failed to load model" in said:
        why = "; ".join(dict.fromkeys(exceptions_in(said))) or "it died"
        raise ServerError(f"a worker cannot load its model: {why}. The whole story is in {log}.")


def exceptions_in(log: str) -> list[str]:
    """The exceptions that workers speak of in TorchServe's log, by name and message."""
    told = []
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # Java's own last words are no JSON, nor is a line half written
            continue
        # A worker's own line, or, from before it can write those, one that TorchServe passes on.
        if "lane" in entry or str(entry.get("thread")).endswith("-stdout"):
            text = f"{entry.get('message')}\n{entry.get('exception', '')}"
            told += re.findall(r"^((?:[\w.]+\.)?\w*(?:Error|Exception)\b.*)", text, re.MULTILINE)
    return told


def stop(children: Children) -> None:
    """End every process started and all that those started; kill what does not go."""
    processes = []
    for child in children.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(child.pid)
            processes += [process, *process.children(recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=STOP_TIMEOUT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    for child in children.values():
        child.wait()


def _start_torchserve(
    options: Options, config: Path, scratch: str, *, alone: bool
) -> subprocess.Popen[bytes]:
    options.key_file.unlink(missing_ok=True)  # a token of an earlier start would be refused
    threads = threads_per_worker(config.read_text())
    logs = str(options.run_dir / "logs")
    environ = {
        "JAVA_HOME": str(java_home()),
        "TEMP": scratch,  # Java's: unpacked archives, the workers' sockets
        "TMPDIR": scratch,  # the launcher's pid file, so that servers can run side by side
        "LOG_LOCATION": logs,
        "METRICS_LOCATION": logs,
        "SAMSERVE_CACHE_DIRECTORY": os.environ.get(
            "SAMSERVE_CACHE_DIRECTORY", str(options.cache_dir)
        ),
        "SAMSERVE_JOBS_DIRECTORY": str(options.jobs_dir),
        **{f"SAMSERVE_{mode.upper()}_THREADS": str(n) for mode, n in threads.items()},
        **WORKER_ENVIRONMENT,
    }
    command = [sys.executable, "-m", "ts.model_server", "--start", "--foreground", "--ncs"]
    command += ["--model-store", str(options.models_dir), "--ts-config", str(config)]
    command += ["--log-config", str(places.config_folder() / "log4j2.xml")]
    # Alone in a container, it says all on the container's own output.
    return _spawn(command, environ, options, None if alone else "torchserve")


def _start_gateway(options: Options) -> subprocess.Popen[bytes]:
    environ = {
        "SAMSERVE_HOST": options.host,
        "SAMSERVE_PORT": str(options.port),
        "SAMSERVE_MODELS": options.models,
        "SAMSERVE_JOBS_DIRECTORY": str(options.jobs_dir),
        "SAMSERVE_WEIGHTS_DIR": str(options.weights_dir.resolve()),
        "SAMSERVE_MODEL_STORE": str(options.model_store.resolve()),
        "SAMSERVE_MODELS_DIR": str(options.models_dir),
        **{name: os.environ[name] for name in [ADMIN_TOKEN] if name in os.environ},
        **{f"SAMSERVE_{name.upper()}": value for name, value in _addresses(options).items()},
        **GATEWAY_ENVIRONMENT,
    }
    return _spawn([sys.executable, "-m", "samserve_gateway"], environ, options, "gateway")


def _spawn(
    command: list[str], environ: dict[str, str], options: Options, name: str | None
) -> subprocess.Popen[bytes]:
    """A child in a session of its own, so that Ctrl-C reaches only us, who stop it in order.

    Args:
        name: its console's file is called so; None where its console is ours.
        environ: besides our own environment, of which the administrator's token is no part.
    """
    own = {key: value for key, value in os.environ.items() if key != ADMIN_TOKEN}
    with contextlib.ExitStack() as opened:
        output = None
        if name is not None:
            path = options.run_dir / "logs" / f"{name}-console.log"
            output = opened.enter_context(path.open("wb"))
        return subprocess.Popen(
            command,
            env={**own, **environ},
            cwd=options.run_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
        )


def _addresses(options: Options) -> dict[str, str]:
    """What it takes to talk to this server's TorchServe."""
    return {
        "inference_url": options.inference_url,
        "management_url": options.management_url,
        "key_file": str(options.key_file),
    }
