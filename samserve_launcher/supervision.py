"""Starts a process of a server again when it ends or hangs, while the other one goes on serving.

A process that ends again and again has a reason that no restart mends. So the number of restarts is
bounded, and each waits twice as long as the one before.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path

from samserve.serving.logs import JsonFormatter

from .console_logs import MAX_BYTES, N_KEPT, end_of, rotate
from .errors import ServerError
from .health import SILENT_S, Health
from .processes import Processes
from .pulses import Pulses

MAX_RESTARTS = 5
WITHIN_S = 600.0
"""A process that ends more than `MAX_RESTARTS` times within this time ends the server."""

FIRST_PAUSE_S = 1.0
"""The time before the first restart; it doubles with each restart within `WITHIN_S`."""

NAMES = {"torchserve": "TorchServe", "gateway": "The gateway"}

logger = logging.getLogger("samserve_launcher.supervision")


class Supervisor:
    """Watches the processes of a server that has started.

    Args:
        processes: the server's processes.
        logs: the folder of its logs. The supervisor writes `launcher.log`.
        pulses: kills workers that stand still.
        health: by the name of a process, whether it still answers.
        clock: returns seconds that never jump.
    """

    def __init__(
        self,
        processes: Processes,
        logs: Path,
        *,
        pulses: Pulses | None = None,
        health: Mapping[str, Health] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._processes = processes
        self._logs = logs
        self._pulses = pulses
        self._health = dict(health or {})
        self._clock = clock
        self._ends: dict[str, deque[float]] = {name: deque() for name in processes}
        self._due: dict[str, float] = {}
        self._log = RotatingFileHandler(
            logs / "launcher.log", maxBytes=MAX_BYTES, backupCount=N_KEPT, encoding="utf-8"
        )
        self._log.setFormatter(JsonFormatter())
        logger.addHandler(self._log)
        logger.setLevel(logging.INFO)

    def close(self) -> None:
        """Close the log, and watch no more."""
        for health in self._health.values():
            health.close()
        logger.removeHandler(self._log)
        self._log.close()

    def check(self) -> None:
        """Look at every process once. Call it about every second.

        Raises:
            ServerError: a process has ended too often; the message has the end of its output.
        """
        for name, process in list(self._processes.items()):
            rotate(self._logs / f"{name}-console.log")
            if name in self._due:
                if self._clock() >= self._due[name]:
                    del self._due[name]
                    self._processes.restart(name)
                    self._say(f"{NAMES.get(name, name)} is started again.")
            elif process.poll() is not None:
                self._plan_restart(name, process.returncode)
            elif name in self._health and self._health[name].is_silent():
                self._say(
                    f"{NAMES.get(name, name)} has not answered for {SILENT_S:.0f} s. It is killed."
                )
                self._health[name].restart()
                self._processes.kill(name)
                self._plan_restart(name, self._processes[name].returncode)
        for pid in self._pulses.check() if self._pulses is not None else ():
            self._say(
                f"The worker with process id {pid} stood still and was killed. "
                "TorchServe starts a new one."
            )

    def _plan_restart(self, name: str, status: int) -> None:
        # What the process has started lives on: a worker of TorchServe computes until its socket
        # is read again, and would write into folders that the new workers use.
        self._processes.kill(name)
        now = self._clock()
        ends = self._ends[name]
        ends.append(now)
        while ends[0] < now - WITHIN_S:
            ends.popleft()
        why = how_it_ended(name, status, self._logs)
        if len(ends) > MAX_RESTARTS:
            raise ServerError(
                f"{why}\n{NAMES.get(name, name)} has ended {len(ends)} times within "
                f"{WITHIN_S:.0f} s; the limit is {MAX_RESTARTS}. The server stops."
            )
        pause = FIRST_PAUSE_S * 2 ** (len(ends) - 1)
        self._due[name] = now + pause
        self._say(
            f"{why}\nIt is started again in {pause:.0f} s "
            f"(restart {len(ends)} of {MAX_RESTARTS} within {WITHIN_S:.0f} s)."
        )

    def _say(self, message: str) -> None:
        logger.warning("%s", message)
        print(f"samserve: {message}", file=sys.stderr, flush=True)


def how_it_ended(name: str, status: int, logs: Path) -> str:
    """Return a sentence with the status of a process, and the end of its output.

    A negative status is the number of the signal that killed it.
    """
    by = f"status {status}"
    if status < 0:
        by += f" ({signal.Signals(-status).name})"
    output = end_of(logs / f"{name}-console.log").strip()
    said = f"the end of its output:\n{output}" if output else "it wrote nothing"
    return f"{name} ended with {by}; {said}"
