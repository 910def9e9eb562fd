"""This module ends a worker whose TorchServe has ended.

A worker reads from TorchServe only between two pieces of work. So one that computes an automask
would go on for many seconds after TorchServe was killed.
"""

from __future__ import annotations

import os
import signal
import threading
import time

POLL_S = 0.5


def end_with_parent() -> None:
    """Kill this process soon after its parent has ended. A thread watches that."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
