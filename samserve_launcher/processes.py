"""This module starts and stops the two processes of a server: TorchServe and the gateway."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import psutil

from samserve import places
from samserve_gateway.settings import ADMIN_TOKEN, KEYS_FILE

from .access import keys_file
from .configuration import threads_per_worker
from .java import java_home
from .options import Options

STOP_TIMEOUT_S = 20

WORKER_ENVIRONMENT = {
    # By default glibc maps new pages for every large tensor and unmaps them afterwards. The page
    # faults cost more than the arithmetic, so a worker keeps its pages.
    "MALLOC_MMAP_THRESHOLD_": str(2**32),
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    # A waiting thread must not spin: the other lane's worker can use its core.
    "OMP_WAIT_POLICY": "PASSIVE",
    # Operations that Apple's GPU lacks run on the CPU instead of raising an error.
    **({"PYTORCH_ENABLE_MPS_FALLBACK": "1"} if sys.platform == "darwin" else {}),
}

GATEWAY_ENVIRONMENT = {
    # For the same reason the gateway keeps the pages of bodies up to 32 MiB.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
    "MALLOC_TRIM_THRESHOLD_": str(2**28),
}

Children = dict[str, "subprocess.Popen[bytes]"]
"""Name -> process."""


def stop(children: Children) -> None:
    """Terminate these processes and all their descendants; kill those that do not end."""
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


def start_torchserve(
    options: Options, config: Path, scratch: str, *, alone: bool
) -> subprocess.Popen[bytes]:
    """Start TorchServe.

    Args:
        config: its config.properties.
        scratch: a folder for its sockets and temporary files.
        alone: it runs without a gateway, as in a container, and logs to our own output.
    """
    options.key_file.unlink(missing_ok=True)  # TorchServe refuses tokens of an earlier start
    threads = threads_per_worker(config.read_text())
    logs = str(options.run_dir / "logs")
    environ = {
        "JAVA_HOME": str(java_home()),
        "TEMP": scratch,  # for Java: unpacked archives, the workers' sockets
        "TMPDIR": scratch,  # for TorchServe's launcher: its pid file, one for each server
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
    return _spawn(command, environ, options, None if alone else "torchserve")


def start_gateway(options: Options) -> subprocess.Popen[bytes]:
    """Start the gateway in front of this server's TorchServe."""
    environ = {
        "SAMSERVE_HOST": options.host,
        "SAMSERVE_PORT": str(options.port),
        "SAMSERVE_MODELS": options.models,
        "SAMSERVE_JOBS_DIRECTORY": str(options.jobs_dir),
        "SAMSERVE_WEIGHTS_DIR": str(options.weights_dir.resolve()),
        "SAMSERVE_MODEL_STORE": str(options.model_store.resolve()),
        "SAMSERVE_MODELS_DIR": str(options.models_dir),
        **{name: os.environ[name] for name in [ADMIN_TOKEN] if name in os.environ},
        **({} if keys_file() is None else {KEYS_FILE: str(keys_file())}),
        **{f"SAMSERVE_{name.upper()}": value for name, value in addresses(options).items()},
        **_tls(options),
        **GATEWAY_ENVIRONMENT,
    }
    return _spawn([sys.executable, "-m", "samserve_gateway"], environ, options, "gateway")


def _tls(options: Options) -> dict[str, str]:
    """Return the variables with the gateway's certificate and key."""
    files = {"CERTIFICATE": options.tls_certificate, "KEY": options.tls_key}
    return {f"SAMSERVE_TLS_{name}": str(path) for name, path in files.items() if path is not None}


def _spawn(
    command: list[str], environ: dict[str, str], options: Options, name: str | None
) -> subprocess.Popen[bytes]:
    """Start a child process in its own session, so that Ctrl-C reaches only the launcher.

    Args:
        environ: variables in addition to the launcher's, without the administrator's token.
        name: its output goes to `logs/<name>-console.log`. None: to the launcher's output.
    """
    inherited = {key: value for key, value in os.environ.items() if key != ADMIN_TOKEN}
    with contextlib.ExitStack() as opened:
        output = None
        if name is not None:
            path = options.run_dir / "logs" / f"{name}-console.log"
            output = opened.enter_context(path.open("wb"))
        return subprocess.Popen(
            command,
            env={**inherited, **environ},
            cwd=options.run_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
        )


def addresses(options: Options) -> dict[str, str]:
    """Return the addresses and the token file of this server's TorchServe."""
    return {
        "inference_url": options.inference_url,
        "management_url": options.management_url,
        "key_file": str(options.key_file),
    }
