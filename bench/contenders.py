"""The benchmark's contenders: each answers one request at a time, and its time is measured.

Child processes run `bench.child` and measure themselves. The server is `make serve`'s; requests go
to TorchServe or to the gateway.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
import psutil

from samserve.serving.lanes import mode_of
from samserve_gateway.torchserve import Answer, TorchServe, TorchServeError
from samserve_launcher.options import Options, free_ports
from samserve_launcher.processes import WORKER_ENVIRONMENT, Children
from samserve_launcher.server import running

from . import ROOT
from .pictures import Request

MODEL = "vit_t"
WEIGHTS = ROOT / "weights" / f"{MODEL}.pt"
ARCHIVE = ROOT / "model_store" / f"{MODEL}.mar"

CACHE_VARIABLE = "SAMSERVE_CACHE_DIRECTORY"
TIMEOUT_S = 3600.0

Door = Literal["TorchServe", "gateway"]


class BenchError(Exception):
    """A contender failed, so the run is invalid; the message says how."""


@dataclass(frozen=True)
class Sample:
    """The cost of one call.

    Attributes:
        wall: elapsed seconds.
        cpu: CPU seconds of all the contender's processes.
        peak: the highest resident memory of the working process since its start, in bytes.
    """

    wall: float
    cpu: float
    peak: int


@dataclass
class Load:
    """The answers to clients that send at the same time.

    Attributes:
        latencies: seconds of each answer.
        errors: number of refusals; they have no latency.
        seconds: from the first request to the last answer.
        cpu: CPU seconds of the server's processes.
        peak: as in Sample.
    """

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    peak: int = 0


def copied_store(folder: Path) -> Path:
    """Copy the archive into a model store, so that the whole run measures one archive."""
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(ARCHIVE, store)
    return store


def check_files() -> None:
    """Raise BenchError, with the command that makes the file, if weights or archive are missing."""
    for path, target in ((WEIGHTS, "weights"), (ARCHIVE, "archive")):
        if not path.is_file():
            raise BenchError(f"{path} is missing; `make {target}` makes it.")


class Child:
    """A contender in a child process."""

    def __init__(self, name: str, process: subprocess.Popen[str], folder: Path) -> None:
        self._name = name
        self._process = process
        self._folder = folder

    def ask(self, do: str, request: Request) -> tuple[Sample, bytes]:
        """Run a command of `bench.child`; return its cost and its answer.

        Raises:
            BenchError: the child ended; the message has the end of its output.
        """
        body, answer = self._folder / "body", self._folder / "answer"
        body.write_bytes(request.body())
        command = {"do": do, "body": str(body), "answer": str(answer)}
        line = ""
        if self._process.stdin and self._process.stdout:
            with contextlib.suppress(BrokenPipeError):  # the child has ended; readline returns ""
                print(json.dumps(command), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            output = (self._folder / "stderr").read_text(errors="replace")
            status = self._process.wait()
            raise BenchError(
                f"{self._name} ended with status {status}; its output ends:\n{output[-4000:]}"
            )
        times = json.loads(line)
        peak = peak_memory(self._process.pid)
        return Sample(times["wall"], times["cpu"], peak), answer.read_bytes()


@contextlib.contextmanager
def reference(folder: Path, *, kept_pages: bool) -> Iterator[Child]:
    """Run the reference, with our workers' allocator settings or with the system's."""
    name = "reference, kept pages" if kept_pages else "reference"
    environ = environment(kept_pages=kept_pages)
    with _child(name, ["reference", str(WEIGHTS)], environ, folder / name) as child:
        yield child


def environment(*, kept_pages: bool) -> dict[str, str]:
    """Return the variables of a child: with our workers' allocator settings, or the system's."""
    plain = {
        key: value
        for key, value in os.environ.items()
        if key not in WORKER_ENVIRONMENT and not key.startswith("MALLOC_")
    }
    return {**plain, **WORKER_ENVIRONMENT} if kept_pages else plain


@contextlib.contextmanager
def handler(folder: Path, store: Path, lane: str) -> Iterator[Child]:
    """Run our handler from this store's archive, with an empty cache."""
    lane_folder = folder / lane
    model_dir, cache = lane_folder / "archive", lane_folder / "cache"
    cache.mkdir(parents=True)
    with zipfile.ZipFile(store / ARCHIVE.name) as archive:
        archive.extractall(model_dir)
    environ = {**os.environ, **WORKER_ENVIRONMENT, CACHE_VARIABLE: str(cache)}
    arguments = ["handler", str(model_dir), lane]
    with _child(f"handler {lane}", arguments, environ, lane_folder) as child:
        yield child


@contextlib.contextmanager
def _child(
    name: str, arguments: list[str], environ: dict[str, str], folder: Path
) -> Iterator[Child]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("wb") as output:
        process = subprocess.Popen(
            # Importing mobile_sam prints warnings that do not concern the benchmark.
            [sys.executable, "-W", "ignore", "-m", "bench.child", *arguments],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only this process, which stops the child
        )
    try:
        yield Child(name, process, folder)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder)


class Server:
    """A running server. Requests to TorchServe and to the gateway use open connections."""

    def __init__(self, options: Options, processes: Children) -> None:
        self._options = options
        self._processes = processes
        self._loop = asyncio.new_event_loop()
        self._torchserve = TorchServe(
            options.inference_url, options.management_url, options.key_file
        )
        self._gateway = self._loop.run_until_complete(self._open())
        self._workers = {
            lane: [
                int(worker["pid"])
                for worker in self._loop.run_until_complete(self._torchserve.lane(lane))["workers"]
            ]
            for lane in options.lanes()
        }

    def close(self) -> None:
        """Close the connections, even after an interruption within a request."""
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _open(self) -> aiohttp.ClientSession:
        await self._torchserve.__aenter__()
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S))

    async def _close(self) -> None:
        pending = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)
        await self._gateway.close()
        await self._torchserve.__aexit__()

    def ask(self, door: Door, lane: str, request: Request) -> tuple[Sample, bytes]:
        """Send a request; return its cost and its answer.

        Raises:
            BenchError: the answer was a refusal, or had no objects.
        """
        body = request.body()
        before, started = self._cpu(), time.perf_counter()
        answer = self._loop.run_until_complete(self._post(door, lane, body))
        wall = time.perf_counter() - started
        cpu = self._cpu_since(before)
        if not _is_answer(answer):
            start = answer.content[:1000]
            raise BenchError(f"{door} answered {answer.status}: {start!r}\n{self._where()}")
        return Sample(wall, cpu, self._peak(lane)), answer.content

    def load(
        self, lane: str, clients: int, bodies: Iterator[bytes], least: int, seconds: float
    ) -> Load:
        """Let clients of the gateway send bodies, each the next one when it has its answer.

        Ends after `least` answers and `seconds`, or when no body is left.
        """
        load = Load()
        before, started = self._cpu(), time.perf_counter()

        async def client() -> None:
            for body in bodies:
                sent = time.perf_counter()
                answer = await self._post("gateway", lane, body)
                took = time.perf_counter() - sent
                if _is_answer(answer):
                    load.latencies.append(took)
                else:
                    load.errors += 1
                answers = len(load.latencies) + load.errors
                if answers >= least and time.perf_counter() - started >= seconds:
                    return

        async def all_clients() -> None:
            await asyncio.gather(*(client() for _ in range(clients)))

        self._loop.run_until_complete(all_clients())
        load.seconds = time.perf_counter() - started
        load.cpu = self._cpu_since(before)
        load.peak = self._peak(lane)
        return load

    def arrivals(self, schedule: Sequence[tuple[float, str, bytes]]) -> list[float]:
        """Send each body to the gateway at its time, whether or not earlier ones are answered.

        Args:
            schedule: seconds from now, lane and body of each request, in the order of the times.

        Returns:
            The seconds that each answer took, in the order of the schedule.

        Raises:
            BenchError: an answer was a refusal, or had no objects.
        """
        started = time.perf_counter()

        async def one(at: float, lane: str, body: bytes) -> float:
            await asyncio.sleep(at - (time.perf_counter() - started))
            sent = time.perf_counter()
            answer = await self._post("gateway", lane, body)
            if not _is_answer(answer):
                raise BenchError(f"the gateway answered {answer.status}. {self._where()}")
            return time.perf_counter() - sent

        async def every() -> list[float]:
            return await asyncio.gather(*(one(*request) for request in schedule))

        return self._loop.run_until_complete(every())

    async def _post(self, door: Door, lane: str, body: bytes) -> Answer:
        path = "/sam/automask/" if mode_of(lane) == "automask" else "/sam/"
        headers = {"Content-Type": "application/json"}
        try:
            if door == "TorchServe":
                return await self._torchserve.predict(lane, body, headers, TIMEOUT_S)
            url = self._options.url + path
            async with self._gateway.post(url, data=body, headers=headers) as answer:
                return Answer(answer.status, answer.headers, await answer.read())
        except (TorchServeError, aiohttp.ClientError) as exc:
            raise BenchError(f"{door} gave no answer: {exc!r}. {self._where()}") from exc

    def _where(self) -> str:
        return f"The server's logs are in {self._options.run_dir / 'logs'}."

    def _peak(self, lane: str) -> int:
        try:
            return sum(peak_memory(pid) for pid in self._workers[lane])
        except psutil.NoSuchProcess as exc:
            raise BenchError(f"a worker of {lane} has ended. {self._where()}") from exc

    def _cpu(self) -> dict[int, float]:
        """Return pid -> CPU seconds so far, for each live process of the server."""
        used = {}
        for child in self._processes.values():
            root = psutil.Process(child.pid)
            for process in (root, *root.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    times = process.cpu_times()
                    used[process.pid] = float(times.user + times.system)
        return used

    def _cpu_since(self, before: dict[int, float]) -> float:
        return sum(used - before.get(pid, 0.0) for pid, used in self._cpu().items())


@contextlib.contextmanager
def server(folder: Path, store: Path) -> Iterator[Server]:
    """Run TorchServe and the gateway on free ports, with an empty cache."""
    cache = folder / "server-cache"
    cache.mkdir(parents=True)
    os.environ[CACHE_VARIABLE] = str(cache)  # `running` passes the environment on
    options = free_ports(Options(models=MODEL, model_store=store))
    with running(options) as processes:
        serving = Server(options, processes)
        try:
            yield serving
        finally:
            serving.close()
    shutil.rmtree(options.run_dir)  # the logs are only needed after a failure
    shutil.rmtree(cache)


def _is_answer(answer: Answer) -> bool:
    """Return whether the answer has objects and is no refusal."""
    return answer.status == 200 and answer.content not in (b"", b"[]")


def peak_memory(pid: int) -> int:
    """Return a process's highest resident memory in bytes; outside Linux, its present one."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process(pid).memory_info().rss)
