"""A process that ends is started again, a bounded number of times."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from samserve_launcher.console_logs import rotate
from samserve_launcher.errors import ServerError
from samserve_launcher.guard import members_of
from samserve_launcher.processes import Guard, Processes, stop
from samserve_launcher.supervision import MAX_RESTARTS, WITHIN_S, Supervisor
from tests.support.waiting import wait_for


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    with (tmp_path / "lock").open("w") as lock, Guard([], lock.fileno()) as guard:
        children = Processes(guard)
        for name in ("torchserve", "gateway"):
            children.start(name, starter(tmp_path, name))
        yield children
        stop(children)


@pytest.fixture
def supervisor(processes: Processes, tmp_path: Path, clock: Clock) -> Iterator[Supervisor]:
    supervisor = Supervisor(processes, tmp_path, clock=clock)
    yield supervisor
    supervisor.close()


def starter(logs: Path, name: str) -> Callable[[], subprocess.Popen[bytes]]:
    """Return what starts a process that has a child, and then waits."""
    program = "import os, time\nprint('started', flush=True)\nos.fork()\ntime.sleep(1000)\n"

    def start() -> subprocess.Popen[bytes]:
        log = logs / f"{name}-console.log"
        rotate(log, max_bytes=0)
        with log.open("ab") as output:
            return subprocess.Popen(
                [sys.executable, "-c", program], stdout=output, start_new_session=True
            )

    return start


def kill(processes: Processes, name: str) -> int:
    """Kill a process but not its child, and return the id of their session."""
    session = processes[name].pid
    wait_for(lambda: len(members_of(session)) == 2)
    os.kill(session, signal.SIGKILL)
    wait_for(lambda: processes[name].poll() is not None)
    assert len(members_of(session)) == 1
    return session


@pytest.mark.parametrize("name", ["torchserve", "gateway"])
def test_a_killed_process_is_started_again_and_the_other_goes_on(
    name: str,
    processes: Processes,
    supervisor: Supervisor,
    clock: Clock,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {each: process.pid for each, process in processes.items()}
    supervisor.check()
    session = kill(processes, name)
    supervisor.check()
    assert members_of(session) == []
    assert processes[name].pid == before[name]  # it waits
    clock.now += 0.99
    supervisor.check()
    assert processes[name].pid == before[name]
    clock.now += 0.02
    supervisor.check()
    assert processes[name].poll() is None
    changed = {each for each, process in processes.items() if process.pid != before[each]}
    assert changed == {name}
    said = capsys.readouterr().err
    assert f"{name} ended with status -9 (SIGKILL); the end of its output:\nstarted" in said
    assert "started again in 1 s (restart 1 of 5 within 600 s)" in said
    logged = [json.loads(line) for line in (tmp_path / "launcher.log").read_text().splitlines()]
    assert len(logged) == 2
    assert "restart 1 of 5" in logged[0]["message"]


def test_too_many_ends_end_the_server(
    processes: Processes, supervisor: Supervisor, clock: Clock
) -> None:
    pauses = []
    for _ in range(MAX_RESTARTS):
        kill(processes, "gateway")
        supervisor.check()
        began, ended = clock.now, processes["gateway"].pid
        while processes["gateway"].pid == ended:
            clock.now += 0.5
            supervisor.check()
        pauses.append(clock.now - began)
    assert pauses == [1, 2, 4, 8, 16]
    kill(processes, "gateway")
    with pytest.raises(ServerError, match=r"SIGKILL.*(?s:.)*has ended 6 times within 600 s"):
        supervisor.check()


def test_old_ends_do_not_count(processes: Processes, supervisor: Supervisor, clock: Clock) -> None:
    for _ in range(MAX_RESTARTS + 2):
        kill(processes, "torchserve")
        supervisor.check()
        clock.now += 1
        supervisor.check()
        assert processes["torchserve"].poll() is None
        clock.now += WITHIN_S
