"""Workers that stand still are killed, and nobody else is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from samserve_launcher.pulses import SILENT_S, Pulses

SLEEPS = "import time; time.sleep(1000)"


class Clock:
    """A clock that only a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A folder of pulses that is looked at once a second."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.clock = Clock()
        self.pulses = Pulses(folder, self.clock)
        self._touched = 0

    def process(self, name: str = "model_service_worker.py") -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", SLEEPS, name])
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def touch(self, pid: int) -> None:
        path = self.folder / f"{pid}.pulse"
        path.touch()
        self._touched += 1
        os.utime(path, ns=(self._touched, self._touched))

    def seconds(self, count: float, *beating: int) -> list[int]:
        """Let seconds pass in which these processes touch their files. Return who was killed."""
        killed = []
        for _ in range(int(count)):
            for pid in beating:
                self.touch(pid)
            killed += self.pulses.check()
            self.clock.now += 1
        return killed


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(tmp_path, stack)


def test_a_stopped_worker_is_killed_and_the_other_one_goes_on(watched: Watched) -> None:
    stands, runs = watched.process(), watched.process()
    assert watched.seconds(100, stands.pid, runs.pid) == []
    stands.send_signal(signal.SIGSTOP)
    assert watched.seconds(SILENT_S - 1, runs.pid) == []
    assert watched.seconds(3, runs.pid) == [stands.pid]
    assert stands.wait(10) == -signal.SIGKILL
    assert watched.seconds(100, runs.pid) == []
    assert runs.poll() is None
    assert [path.name for path in watched.folder.iterdir()] == [f"{runs.pid}.pulse"]


def test_a_worker_that_ended_leaves_no_file(watched: Watched) -> None:
    worker = watched.process()
    watched.touch(worker.pid)
    worker.kill()
    worker.wait()
    assert watched.seconds(SILENT_S + 3) == []
    assert not list(watched.folder.iterdir())


def test_no_other_process_is_killed(watched: Watched) -> None:
    """The kernel may have given the process id to another program."""
    other = watched.process("editor")
    watched.touch(other.pid)
    assert watched.seconds(SILENT_S + 3) == []
    assert other.poll() is None


@pytest.mark.parametrize("name", ["x.pulse", ".pulse", "-1.pulse", "0.pulse", "1e9.pulse", "notes"])
def test_foreign_files_harm_nothing(watched: Watched, name: str) -> None:
    (watched.folder / name).touch()
    assert watched.seconds(SILENT_S + 3) == []


def test_a_launcher_that_stood_still_itself_kills_nobody(watched: Watched) -> None:
    worker = watched.process()
    watched.seconds(5, worker.pid)
    watched.clock.now += 1000  # the machine was suspended
    assert watched.seconds(SILENT_S - 1) == []
    assert watched.seconds(20, worker.pid) == []
    assert worker.poll() is None


def test_no_folder_is_no_worker(tmp_path: Path) -> None:
    assert Pulses(tmp_path / "none").check() == []


def test_a_system_clock_that_was_set_back_kills_nobody(watched: Watched) -> None:
    worker = watched.process()
    path = watched.folder / f"{worker.pid}.pulse"
    path.touch()
    killed = []
    for second in range(200):
        os.utime(path, ns=(10**15 - second, 10**15 - second))
        killed += watched.pulses.check()
        watched.clock.now += 1
    assert killed == []
