"""Ends a server whose launcher was killed: its processes, and then its files.

    python -m samserve_launcher.guard PATH…

The launcher starts this process first and holds the other end of its standard input. It writes
`session N` for each process that it starts (each is the leader of a session, which its descendants
share) and `gone N` for a session that it has ended. The kernel closes that end whenever and however
the launcher ends. Then the guard kills the sessions and removes the paths.

The guard inherits the lock of the run folder. So the next server on that port waits until the files
of this one are removed.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

_KILL_TIMEOUT_S = 10.0
_PAUSE_S = 0.05


def main() -> None:
    """Wait for the end of the launcher, and end what it has left."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the launcher, and not before
    sessions: set[int] = set()
    for line in sys.stdin:
        what, number_of = line.split()
        if what == "session":
            sessions.add(int(number_of))
        else:
            sessions.discard(int(number_of))
    for session in sessions:
        kill_session(session)
    for path in map(Path, sys.argv[1:]):
        remove(path)


def members_of(session: int) -> list[int]:
    """Return the ids of the processes in this session, without those that have ended already."""
    members = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error):
            if os.getsid(pid) == session and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                members.append(pid)
    return members


def kill_session(session: int) -> None:
    """Kill every process of a session, and wait until they have ended."""
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    while (members := members_of(session)) and time.monotonic() < deadline:
        for pid in members:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE_S)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it. If it is not there, do nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
