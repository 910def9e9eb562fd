"""A process ends with the process that started it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import psutil
import pytest

from samserve import parents
from samserve_launcher.guard import members_of
from tests.support.paths import ROOT
from tests.support.waiting import wait_for

STARTS = """
import os, subprocess, sys, time
command = [word.replace("PARENT", str(os.getpid())) for word in sys.argv[1:]]
print(subprocess.Popen(command, start_new_session=True).pid, flush=True)
time.sleep(99)
"""

SCRIPT = [sys.executable, "-IS", parents.__file__, "PARENT", sys.executable, "-c"]
WATCHES = "from samserve import parents; parents.end_with_parent()\n"
SLEEPS = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(99)"
COMPUTES = "while True: sum(range(10**6))"

linux = pytest.mark.skipif(sys.platform != "linux", reason="the kernel does this on Linux only")


@pytest.mark.parametrize(
    "command",
    [
        pytest.param([*SCRIPT, SLEEPS], id="script", marks=linux),
        pytest.param([sys.executable, "-c", WATCHES + SLEEPS], id="thread"),
        pytest.param([sys.executable, "-c", WATCHES + COMPUTES], id="thread beside work"),
        pytest.param(
            [sys.executable, "-m", "samserve.archives.register", "PARENT"],
            id="registration",
            marks=linux,
        ),
    ],
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_ends_with_its_parent(command: list[str], number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STARTS, *command],
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'handlers'}:{ROOT}"},
        stdin=subprocess.PIPE,  # stays open: the registration waits for its request
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        started = psutil.Process(int(parent.stdout.readline()))
        # It has begun when it does not start any more: it waits, or uses the processor.
        wait_for(lambda: started.cpu_times().user > 0.05 or ends_by_itself(started))
        parent.send_signal(number)
        parent.wait()
        wait_for(lambda: not members_of(started.pid), 20)


def ends_by_itself(process: psutil.Process) -> bool:
    """Return whether the process sleeps after its start."""
    return bool(process.status() == psutil.STATUS_SLEEPING and process.memory_info().rss > 2**23)


def test_a_process_whose_parent_has_ended_before_does_not_start() -> None:
    command = [sys.executable, "-IS", parents.__file__, "1000000000", "/bin/echo", "runs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == ("" if sys.platform == "linux" else "runs\n")
