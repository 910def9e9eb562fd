"""Processes that end when the process that started them ends.

    python parents.py PARENT COMMAND…

As a script, it turns into a command that the kernel kills when its parent ends: the launcher starts
TorchServe and the gateway so, because a launcher that is killed can stop nothing. The kernel does
that on Linux only (PR_SET_PDEATHSIG, which `execv` keeps). The script imports nothing but the
standard library, so that it costs a start only some milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

PR_SET_PDEATHSIG = 1
POLL_S = 0.5


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process when its parent ends. End at once if it has ended already.

    Other systems than Linux do not kill it later. The kernel also kills this process when only the
    thread ends that started it; so TorchServe's workers use `end_with_parent`.

    Args:
        parent: the process id of the parent.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def end_with_parent() -> None:
    """Kill this process soon after its parent has ended. A thread watches that.

    A worker reads from TorchServe only between two pieces of work. So one that computes an automask
    would go on for many seconds after TorchServe was killed.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def main() -> None:
    """Run the command of the arguments in place of this process."""
    parent, *command = sys.argv[1:]
    die_with_parent(int(parent))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
