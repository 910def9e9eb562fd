"""A worker, TorchServe or the gateway that hangs is replaced, and requests are answered again."""

from __future__ import annotations

import contextlib
import shutil
import signal
import threading
from collections.abc import Iterator

import psutil
import pytest

from samserve_gateway import probe
from samserve_launcher import health, pulses, supervision
from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import Options, free_ports
from samserve_launcher.processes import Processes
from samserve_launcher.serve import supervisor_of
from samserve_launcher.server import running
from tests.support.lanes import pids_of
from tests.support.servers import Server
from tests.support.waiting import wait_for


class Supervised:
    """A server, with a supervisor that looks at it in a thread. Its times are shorter."""

    def __init__(self, server: Server, processes: Processes) -> None:
        self.server, self.processes = server, processes
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._supervise)
        self._thread.start()

    def _supervise(self) -> None:
        supervisor = supervisor_of(self.processes, self.server.options)
        with contextlib.closing(supervisor):
            while not self._stop.wait(0.2):
                supervisor.check()

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def is_ready(self) -> bool:
        with contextlib.suppress(OSError):
            url = f"{self.server.options.url}/readyz"
            return self.server.http.get(url, timeout=5).status_code == 200
        return False


@pytest.fixture(scope="module")
def supervised() -> Iterator[Supervised]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pulses, "SILENT_S", 12.0)
        patch.setattr(health, "SILENT_S", 12.0)
        patch.setattr(health, "EVERY_S", 0.5)
        patch.setattr(supervision, "FIRST_PAUSE_S", 0.1)
        options = free_ports(Options())
        with running(options) as processes, LoopbackSession(300) as http:
            supervised = Supervised(Server(options, http), processes)
            try:
                yield supervised
            finally:
                supervised.close()
        shutil.rmtree(options.run_dir)


@pytest.mark.parametrize("lane", ["vit_t", "vit_t-automask"])
def test_a_stopped_worker_is_replaced(supervised: Supervised, lane: str) -> None:
    """Its request is answered by another worker, or by the new one."""
    server = supervised.server
    stopped = pids_of(server, lane)
    for pid in stopped:
        psutil.Process(pid).send_signal(signal.SIGSTOP)
    path = "/sam/automask/" if lane.endswith("automask") else "/sam/"
    body = probe.automask("vit_t") if lane.endswith("automask") else probe.prompt("vit_t")
    answer = server.post(path, body)
    # The client of an automask is told that it was lost. A prompt is sent again.
    assert answer.status_code in ({200, 503} if lane.endswith("automask") else {200})
    wait_for(lambda: supervised.is_ready() and not set(pids_of(server, lane)) & set(stopped), 120)
    assert server.post(path, body).status_code == 200
    assert not any(psutil.pid_exists(pid) for pid in stopped)


@pytest.mark.parametrize("name", ["torchserve", "gateway"])
def test_a_stopped_process_is_started_again(supervised: Supervised, name: str) -> None:
    stopped = supervised.processes[name]
    wait_for(supervised.is_ready, 60)
    stopped.send_signal(signal.SIGSTOP)
    wait_for(lambda: supervised.processes[name] is not stopped, 60)
    assert stopped.returncode == -signal.SIGKILL
    wait_for(supervised.is_ready, 120)
    assert supervised.server.post("/sam/", probe.prompt("vit_t")).status_code == 200
