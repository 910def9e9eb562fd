"""The benchmark's contenders as it sees them: asked for one answer at a time, and measured.

Children run `bench_child` and time themselves; the server is `make serve`'s, asked through
TorchServe's door and the gateway's. Says what a call took, not what that means.
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
from collections.abc import Iterator
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
    """A contender failed, so the run is worth nothing; the message says how."""


@dataclass(frozen=True)
class Sample:
    """What one call took.

    Attributes:
        wall: seconds.
        cpu: seconds of processor, over all the contender's processes.
        peak: bytes that the process that does the work has held at most since it started.
    """

    wall: float
    cpu: float
    peak: int


@dataclass
class Load:
    """What clients that ask at the same time got.

    Attributes:
        latencies: seconds of each answer.
        errors: refusals, which are in no latency.
        seconds: from the first request to the last answer.
        cpu: seconds of processor of the server's processes.
        peak: as a Sample's.
    """

    latencies: list[float] = field(default_factory=list)
    errors: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    peak: int = 0


def copied_store(folder: Path) -> Path:
    """A model store with the archive as it is now: one run measures one archive."""
    store = folder / "model_store"
    store.mkdir()
    shutil.copy(ARCHIVE, store)
    return store


def check_files() -> None:
    """Raises BenchError, naming the command that makes what is missing."""
    for path, target in ((WEIGHTS, "weights"), (ARCHIVE, "archive")):
        if not path.is_file():
            raise BenchError(f"{path} is missing; `make {target}` makes it.")


class Child:
    """A contender in a process of its own."""

    def __init__(self, name: str, process: subprocess.Popen[str], folder: Path) -> None:
        self._name = name
        self._process = process
        self._folder = folder

    def ask(self, do: str, request: Request) -> tuple[Sample, bytes]:
        """What a command of `bench_child` took, and its answer.

        Raises:
            BenchError: the child ended, with its last words.
        """
        body, answer = self._folder / "body", self._folder / "answer"
        body.write_bytes(request.body())
        command = {"do": do, "body": str(body), "answer": str(answer)}
        line = ""
        if self._process.stdin and self._process.stdout:
            with contextlib.suppress(BrokenPipeError):  # it has ended: nothing to read, then
                print(json.dumps(command), file=self._process.stdin, flush=True)
            line = self._process.stdout.readline()
        if not line:
            said = (self._folder / "stderr").read_text(errors="replace")
            status = self._process.wait()
            raise BenchError(f"{self._name} ended with status {status}; it said:\n{said[-4000:]}")
        took = json.loads(line)
        peak = peak_memory(self._process.pid)
        return Sample(took["wall"], took["cpu"], peak), answer.read_bytes()


@contextlib.contextmanager
def reference(folder: Path, *, kept_pages: bool) -> Iterator[Child]:
    """The reference; with the allocator's settings of our workers, or with the system's own."""
    name = "reference, kept pages" if kept_pages else "reference"
    plain = {
        key: value
        for key, value in os.environ.items()
        if key not in WORKER_ENVIRONMENT and not key.startswith("MALLOC_")
    }
    environ = {**plain, **WORKER_ENVIRONMENT} if kept_pages else plain
    with _child(name, ["reference", str(WEIGHTS)], environ, folder / name) as child:
        yield child


@contextlib.contextmanager
def handler(folder: Path, store: Path, lane: str) -> Iterator[Child]:
    """Our handler out of this store's archive, with an empty cache of its own."""
    own = folder / lane
    model_dir, cache = own / "archive", own / "cache"
    cache.mkdir(parents=True)
    with zipfile.ZipFile(store / ARCHIVE.name) as archive:
        archive.extractall(model_dir)
    environ = {**os.environ, **WORKER_ENVIRONMENT, CACHE_VARIABLE: str(cache)}
    with _child(f"handler {lane}", ["handler", str(model_dir), lane], environ, own) as child:
        yield child


@contextlib.contextmanager
def _child(
    name: str, arguments: list[str], environ: dict[str, str], folder: Path
) -> Iterator[Child]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "stderr").open("wb") as said:
        process = subprocess.Popen(
            # mobile_sam's import warns of things that nobody here can act on.
            [sys.executable, "-W", "ignore", "-m", "bench.child", *arguments],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,  # Ctrl-C reaches only us, who stop it
        )
    try:
        yield Child(name, process, folder)
    finally:
        process.kill()
        process.communicate()
        shutil.rmtree(folder)


class Server:
    """A running server; both doors are asked through connections that stay open."""

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
        """Also after an interruption in the middle of a request."""
        self._loop.run_until_complete(self._close())
        self._loop.close()

    async def _open(self) -> aiohttp.ClientSession:
        await self._torchserve.__aenter__()
        return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(TIMEOUT_S))

    async def _close(self) -> None:
        left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        await self._gateway.close()
        await self._torchserve.__aexit__()

    def ask(self, door: Door, lane: str, request: Request) -> tuple[Sample, bytes]:
        """What an answer took, and the answer.

        Raises:
            BenchError: it was a refusal, or had no objects in it.
        """
        body = request.body()
        before, started = self._cpu(), time.perf_counter()
        answer = self._loop.run_until_complete(self._post(door, lane, body))
        wall = time.perf_counter() - started
        cpu = self._cpu_since(before)
        if not _is_answer(answer):
            said = answer.content[:1000]
            raise BenchError(f"{door} answered {answer.status}: {said!r}\n{self._where()}")
        return Sample(wall, cpu, self._peak(lane)), answer.content

    def load(
        self, lane: str, clients: int, bodies: Iterator[bytes], least: int, seconds: float
    ) -> Load:
        """Clients of the gateway, each of which sends the next body when it has its answer.

        Ends when `least` answers and `seconds` are both over, or when there are no more bodies.
        """
        load = Load()
        before, started = self._cpu(), time.perf_counter()

        async def client() -> None:
            for body in bodies:
                asked = time.perf_counter()
                answer = await self._post("gateway", lane, body)
                took = time.perf_counter() - asked
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
        """Seconds of processor that each of the server's living processes has used so far."""
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
    """TorchServe and the gateway on free ports, with an empty cache of their own."""
    cache = folder / "server-cache"
    cache.mkdir(parents=True)
    os.environ[CACHE_VARIABLE] = str(cache)  # `running` hands the environment on
    options = free_ports(Options(models=MODEL, model_store=store))
    with running(options) as processes:
        serving = Server(options, processes)
        try:
            yield serving
        finally:
            serving.close()
    shutil.rmtree(options.run_dir)  # of no use to anyone, since all went well
    shutil.rmtree(cache)


def _is_answer(answer: Answer) -> bool:
    """Whether it is an answer with objects in it, not a refusal."""
    return answer.status == 200 and answer.content not in (b"", b"[]")


def peak_memory(pid: int) -> int:
    """Bytes of memory a process has held at most; what it holds now where that is not told."""
    status = Path(f"/proc/{pid}/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return int(psutil.Process(pid).memory_info().rss)
