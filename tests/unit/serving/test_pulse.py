"""A worker touches a file while it runs, and ends itself if a step of its work never ends."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from samserve.serving import pulse
from samserve.serving.pulse import STUCK, Pulse
from tests.support.waiting import wait_for

HANGS = """
import sys, threading
from pathlib import Path
from samserve.serving import pulse
pulse.EVERY_S = 0.05

def a_step_that_never_ends():
    threading.Event().wait()

with pulse.Pulse(Path(sys.argv[1]), 0.3).working():
    a_step_that_never_ends()
"""


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulse, "EVERY_S", 0.01)


def test_the_file_is_touched_whether_there_is_work_or_not(tmp_path: Path) -> None:
    beating = Pulse(tmp_path / "pulses", 1000)
    file = tmp_path / "pulses" / f"{os.getpid()}.pulse"
    wait_for(file.exists)

    def is_touched() -> bool:
        before = file.stat().st_mtime_ns
        wait_for(lambda: file.stat().st_mtime_ns > before)
        return True

    assert is_touched()
    with beating.working():
        assert is_touched()


def test_a_folder_that_is_gone_ends_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "pulses"
    Pulse(folder, 1000)
    file = folder / f"{os.getpid()}.pulse"
    wait_for(file.exists)
    folder.rename(tmp_path / "elsewhere")
    time.sleep(0.1)
    folder.mkdir()
    wait_for(file.exists)


def test_a_process_whose_step_never_ends_says_where_and_ends(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", HANGS, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == STUCK
    assert "has taken more than 0.3 s" in done.stderr
    assert "a_step_that_never_ends" in done.stderr


def test_only_a_step_that_is_under_way_can_take_too_long() -> None:
    ended = threading.Event()

    def end(step_s: float) -> None:
        ended.set()
        threading.Event().wait()

    beating = Pulse(None, 0.2, end)
    with beating.working():
        for _ in range(10):
            time.sleep(0.05)
            beating.step()
    time.sleep(0.4)  # idle
    assert not ended.is_set()
    with beating.working():
        assert ended.wait(10)
