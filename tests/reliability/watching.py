"""Watches a server from outside: other clients' waits, memory, open files, restarts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import requests

from samserve_gateway import probe
from samserve_launcher.loopback import LoopbackSession
from samserve_launcher.options import Options

CLICK = json.dumps(probe.prompt("vit_t")).encode()
JSON = {"Content-Type": "application/json"}
SAMPLE_S = 0.05
PAUSE_S = 0.05
"""Pause between two clicks of the bystander."""

GIBIBYTE = 2**30


@dataclass
class Bystander:
    """A client that asks for the same thing again and again while something else happens.

    Attributes:
        latencies: the seconds of each answer.
        failures: the answers that were not 200, as text.
    """

    url: str
    body: bytes | None
    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def ask(self) -> None:
        with LoopbackSession(300) as http:
            while not self.stop.is_set():
                start = time.perf_counter()
                try:
                    answer = (
                        http.get(self.url)
                        if self.body is None
                        else http.post(self.url, data=self.body, headers=JSON)
                    )
                    if answer.status_code != 200:
                        self.failures.append(f"{answer.status_code} {answer.text[:200]}")
                except requests.RequestException as exc:
                    self.failures.append(repr(exc)[:200])
                self.latencies.append(time.perf_counter() - start)
                self.stop.wait(PAUSE_S)

    @property
    def slowest_s(self) -> float:
        return max(self.latencies, default=0.0)


@dataclass
class Seen:
    """What happened to a server within a block.

    Attributes:
        gateway_peak, worker_peak: the most bytes of memory of the gateway, and of a worker.
        ended: processes of the server that are gone.
    """

    clicks: Bystander
    health: Bystander
    gateway_peak: int = 0
    worker_peak: int = 0
    ended: list[str] = field(default_factory=list)


class Processes:
    """The processes of a running server, by role."""

    def __init__(self, options: Options) -> None:
        state = json.loads((options.run_dir / "server.json").read_text())
        launcher = psutil.Process(state["pid"])
        self.gateway: list[psutil.Process] = []
        self.workers: list[psutil.Process] = []
        self.others: list[psutil.Process] = []
        for process in launcher.children(recursive=True):
            try:
                command, folder = " ".join(process.cmdline()), Path(process.cwd())
            except psutil.NoSuchProcess:
                continue
            if not folder.is_relative_to(options.run_dir):
                continue
            if "model_service_worker" in command:
                self.workers.append(process)
            elif "samserve_gateway" in command:
                self.gateway.append(process)
            elif "decoder_child" not in command:
                self.others.append(process)

    def ended(self) -> list[str]:
        """Return the processes that are gone. A decoder may end: its worker starts another."""
        processes = [*self.gateway, *self.workers, *self.others]
        return [str(process) for process in processes if not process.is_running()]

    def files(self) -> int:
        """Return the number of open files and sockets of all processes."""
        return sum(process.num_fds() for process in self.gateway + self.workers)

    @staticmethod
    def memory(processes: list[psutil.Process]) -> int:
        """Return the most bytes of memory that one of the processes has, its children included."""
        return max((_memory(process) for process in processes), default=0)


def _memory(process: psutil.Process) -> int:
    """Return the bytes that a process and its children have for themselves."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            info = one.memory_info()
        except psutil.NoSuchProcess:
            continue
        total += info.rss - info.shared
    return total


@contextmanager
def watched(options: Options) -> Iterator[Seen]:
    """Click, ask for `/healthz`, and sample memory while the block runs."""
    processes = Processes(options)
    clicks = Bystander(options.url + "/sam/", CLICK)
    health = Bystander(options.url + "/healthz", None)
    seen = Seen(clicks, health)
    stop = threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            seen.gateway_peak = max(seen.gateway_peak, processes.memory(processes.gateway))
            seen.worker_peak = max(seen.worker_peak, processes.memory(processes.workers))

    threads = [threading.Thread(target=work) for work in (clicks.ask, health.ask, sample)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(3 * PAUSE_S)
        yield seen
        time.sleep(3 * PAUSE_S)
    finally:
        for event in (stop, clicks.stop, health.stop):
            event.set()
        for thread in threads:
            thread.join()
    seen.ended = processes.ended()


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
