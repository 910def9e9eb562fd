"""This module starts and stops the two processes of a server: TorchServe and the gateway."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

from samserve import parents, places
from samserve_gateway.settings import ADMIN_TOKEN

from .access import gateway_environment
from .configuration import read_properties, threads_per_worker
from .console_logs import begin
from .errors import ServerError
from .guard import kill_session
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

GUARD_TIMEOUT_S = 30


class Guard:
    """The process that ends this server if the launcher is killed (`guard.py`).

    It runs within a `with` block.

    Args:
        paths: what it removes then.
        lock: the descriptor of the run folder's lock, which it holds as long as it runs.
    """

    def __init__(self, paths: Sequence[Path], lock: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "samserve_launcher.guard", *map(str, paths)],
            env=_without_secrets(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=(lock,),
            start_new_session=True,
            text=True,
        )

    def __enter__(self) -> Guard:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait(GUARD_TIMEOUT_S)

    def tell(self, what: str, session: int) -> None:
        """Tell it that a session has begun (`session`) or has ended (`gone`)."""
        # Without the guard, the kernel still kills our direct children when we end (`parents.py`).
        with contextlib.suppress(BrokenPipeError):
            print(what, session, file=self._process.stdin, flush=True)


class Processes(dict[str, "subprocess.Popen[bytes]"]):
    """The processes of a server by name. One that is started again takes the place of the first.

    Args:
        guard: learns of each process.
    """

    def __init__(self, guard: Guard) -> None:
        super().__init__()
        self._guard = guard
        self._starters: dict[str, Callable[[], subprocess.Popen[bytes]]] = {}

    def start(self, name: str, starter: Callable[[], subprocess.Popen[bytes]]) -> None:
        """Start a process. It leads a session of its own.

        Args:
            starter: starts it; it is called again for every restart.
        """
        self._starters[name] = starter
        self[name] = starter()
        self._guard.tell("session", self[name].pid)

    def kill(self, name: str) -> None:
        """Kill a process and everything in its session."""
        kill_session(self[name].pid)
        self[name].wait()
        self._guard.tell("gone", self[name].pid)

    def restart(self, name: str) -> None:
        """Start a process again that has been killed."""
        self.start(name, self._starters[name])


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
        kill_session(child.pid)  # the descendants of a process that had ended before
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
        "TMPDIR": scratch,  # for the workers
        "LOG_LOCATION": logs,
        "METRICS_LOCATION": logs,
        "SAMSERVE_CACHE_DIRECTORY": os.environ.get(
            "SAMSERVE_CACHE_DIRECTORY", str(options.cache_dir)
        ),
        "SAMSERVE_JOBS_DIRECTORY": str(options.jobs_dir),
        "SAMSERVE_PULSE_DIRECTORY": str(options.pulse_dir),
        **{f"SAMSERVE_{mode.upper()}_THREADS": str(n) for mode, n in threads.items()},
        **WORKER_ENVIRONMENT,
    }
    command = torchserve_command(options, config, scratch)
    return _spawn(command, environ, options, None if alone else "torchserve")


def torchserve_command(options: Options, config: Path, scratch: str) -> list[str]:
    """Return the command that runs TorchServe's Java program.

    `ts.model_server` runs the same one, but as a child of its own, which lives on if it is killed.

    Raises:
        ServerError: TorchServe is not installed.
    """
    package = find_spec("ts")
    if package is None or package.origin is None:
        raise ServerError("TorchServe is not installed: the module ts is missing.")
    folder = Path(package.origin).resolve().parent
    return [
        str(java_home().resolve() / "bin" / "java"),
        f"-Dmodel_server_home={folder.parent}",
        f"-Dlog4j.configurationFile=file://{(places.config_folder() / 'log4j2.xml').resolve()}",
        f"-Djava.io.tmpdir={scratch}",
        *read_properties(config.read_text()).get("vmargs", "").split(),
        *("-cp", str(folder / "frontend" / "*")),
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable),
        *("-f", str(config)),
        *("-s", str(options.models_dir)),
        "-ncs",  # no snapshots of the configuration
    ]


def start_gateway(options: Options) -> subprocess.Popen[bytes]:
    """Start the gateway in front of this server's TorchServe."""
    environ = {**gateway_environment(options), **GATEWAY_ENVIRONMENT}
    return _spawn([sys.executable, "-m", "samserve_gateway"], environ, options, "gateway")


def _spawn(
    command: list[str], environ: dict[str, str], options: Options, name: str | None
) -> subprocess.Popen[bytes]:
    """Start a child process in its own session, so that Ctrl-C reaches only the launcher.

    The kernel kills it when this process ends, or the thread that called this.

    Args:
        environ: variables in addition to the launcher's, without the administrator's token.
        name: its output goes to `logs/<name>-console.log`. None: to the launcher's output.
    """
    wrapper = [sys.executable, "-I", "-S", parents.__file__, str(os.getpid())]
    with contextlib.ExitStack() as opened:
        output = None
        if name is not None:
            path = options.run_dir / "logs" / f"{name}-console.log"
            begin(path)
            output = opened.enter_context(path.open("ab"))
        return subprocess.Popen(
            [*wrapper, *command],
            env={**_without_secrets(), **environ},
            cwd=options.run_dir,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=None if output is None else subprocess.STDOUT,
            start_new_session=True,
        )


def _without_secrets() -> dict[str, str]:
    """Return our environment without the administrator's token."""
    return {key: value for key, value in os.environ.items() if key != ADMIN_TOKEN}
