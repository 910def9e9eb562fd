"""Turns this process into a command that the kernel kills when its parent ends.

    python child.py PARENT COMMAND…

The launcher starts each of its processes through this script. A launcher that is killed can stop
nothing; on Linux the kernel then kills these processes (PR_SET_PDEATHSIG, which `execv` keeps).
Elsewhere only `guard.py` does that. The script imports nothing but the standard library, so that it
costs a start only some milliseconds.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Let the kernel kill this process as soon as its parent ends; end if it has ended already.

    It does nothing on systems other than Linux.

    Args:
        parent: the process id of the parent.

    Raises:
        OSError: the kernel refuses.
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG")
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def main() -> None:
    """Run the command of the arguments in place of this process."""
    parent, *command = sys.argv[1:]
    die_with_parent(int(parent))
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
