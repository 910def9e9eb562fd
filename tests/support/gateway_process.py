"""A gateway in a process of its own, whose memory can be measured."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

from samserve_launcher.processes import GATEWAY_ENVIRONMENT
from tests.support.http import Answered, ask
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

MEBIBYTE = 2**20


@dataclass(frozen=True)
class GatewayProcess:
    """A gateway whose TorchServe is down: every request that it does not refuse gets 503."""

    pid: int
    port: int

    def memory(self) -> int:
        """Return the bytes of memory that it has now."""
        return self._status("VmRSS")

    def peak(self) -> int:
        """Return the most bytes of memory that it has had since `forget_peak`."""
        return self._status("VmHWM")

    def forget_peak(self) -> None:
        """Measure `peak` anew from now on."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")

    def get(self, path: str) -> Answered:
        return ask(self.port, "GET", path)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def _status(self, name: str) -> int:
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@dataclass
class Beside:
    """Somebody else who asks for `/healthz` again and again.

    Attributes:
        slowest_s: the longest time that an answer took.
        asked: the number of answers.
    """

    slowest_s: float = 0
    asked: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def ask(self, port: int) -> None:
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        while not self._stop.wait(0.01):
            start = time.monotonic()
            connection.request("GET", "/healthz")
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b'{"status":"alive"}')
            self.slowest_s = max(self.slowest_s, time.monotonic() - start)
            self.asked += 1
        connection.close()


@contextmanager
def somebody_beside(port: int) -> Iterator[Beside]:
    """Ask for `/healthz` while the block runs."""
    beside = Beside()
    thread = threading.Thread(target=beside.ask, args=(port,))
    thread.start()
    try:
        wait_for(lambda: beside.asked)
        yield beside
        asked = beside.asked
        wait_for(lambda: beside.asked > asked)  # the answer that was under way counts
    finally:
        beside._stop.set()
        thread.join()


@contextmanager
def gateway_process(**settings: str) -> Iterator[GatewayProcess]:
    """Run a gateway with these settings within the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    nowhere = "http://127.0.0.1:9"
    process = subprocess.Popen(
        [sys.executable, "-m", "samserve_gateway"],
        env={
            **os.environ,
            **GATEWAY_ENVIRONMENT,
            "SAMSERVE_PORT": str(port),
            "SAMSERVE_INFERENCE_URL": nowhere,
            "SAMSERVE_MANAGEMENT_URL": nowhere,
            "SAMSERVE_TORCHSERVE_TOKENS": "off",
            **settings,
        },
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return ask(port, "GET", "/healthz").status == 200
        return False

    try:
        wait_for(lambda: process.poll() is not None or answers())
        assert process.poll() is None
        yield GatewayProcess(process.pid, port)
    finally:
        process.terminate()
        process.wait()
