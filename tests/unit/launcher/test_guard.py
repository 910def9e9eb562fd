"""A launcher that is killed leaves no process and no file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from samserve_launcher.guard import kill_session, members_of, remove
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

LAUNCHER = """
import subprocess, sys, time
from pathlib import Path
from samserve_launcher.processes import Guard, Processes
folder = Path(sys.argv[1])
with (folder / "lock").open("w") as lock, Guard(
    [folder / "shm", folder / "server.json", folder / "never"], lock.fileno()
) as guard:
    processes = Processes(guard)
    tree = "import subprocess, sys, time; subprocess.Popen(['sleep', '1000']); time.sleep(1000)"
    def start():
        return subprocess.Popen([sys.executable, "-c", tree], start_new_session=True)
    processes.start("first", start)
    processes.start("second", start)
    processes.kill("second")
    print(processes["first"].pid, guard._process.pid, flush=True)
    if sys.argv[2] == "wait":
        time.sleep(1000)
"""


def launch(folder: Path, *, wait: bool = True) -> subprocess.Popen[str]:
    (folder / "shm").mkdir()
    (folder / "shm" / "embedding").write_bytes(b"x" * 1000)
    (folder / "server.json").touch()
    (folder / "kept").touch()
    return subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(folder), "wait" if wait else "end"],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'handlers'}:{ROOT}"},
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_launcher_that_is_killed_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    with launch(tmp_path) as launcher:
        assert launcher.stdout is not None
        session, guard = map(int, launcher.stdout.readline().split())
        wait_for(lambda: len(members_of(session)) == 2)
        launcher.send_signal(number)
        launcher.wait()
        wait_for(lambda: not members_of(session), 10)
        wait_for(lambda: not members_of(guard), 10)
        assert {path.name for path in tmp_path.iterdir()} == {"kept", "lock"}


def test_the_guard_ends_with_the_launcher(tmp_path: Path) -> None:
    with launch(tmp_path, wait=False) as launcher:
        assert launcher.stdout is not None
        session, guard = map(int, launcher.stdout.readline().split())
        assert launcher.wait() == 0
        assert not members_of(guard)
        assert not members_of(session)


def ignores(pid: int, number: signal.Signals) -> bool:
    """Return whether a process ignores a signal. One that starts does not yet."""
    status = Path(f"/proc/{pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigIgn")]
    return bool(int(mask, 16) >> (number - 1) & 1)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc says what a process ignores")
def test_a_guard_ignores_the_signals_of_a_terminal(tmp_path: Path) -> None:
    with launch(tmp_path) as launcher:
        assert launcher.stdout is not None
        session, guard = map(int, launcher.stdout.readline().split())
        wait_for(lambda: ignores(guard, signal.SIGHUP))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(guard, number)
        launcher.kill()
        wait_for(lambda: not members_of(session), 10)


def test_only_the_session_is_killed() -> None:
    commands = [["sleep", "1000"] for _ in range(2)]
    killed, other = (subprocess.Popen(command, start_new_session=True) for command in commands)
    kill_session(killed.pid)
    assert killed.wait() == -signal.SIGKILL
    assert other.poll() is None
    other.kill()
    other.wait()


def test_a_link_is_removed_and_not_what_it_points_to(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    remove(tmp_path / "link")
    remove(tmp_path / "never")
    assert (tmp_path / "folder" / "file").exists()
    assert not (tmp_path / "link").exists()
