"""Several prompts at once: a thread each, instead of all threads in every operation.

The decoder is hundreds of small operations a prompt. Shared out between threads, each of
them ends in a barrier, where all wait for whichever thread the system has just taken off its
core: with another busy process on the machine that made automask several times as slow. And a
click after a pause would wait, at each barrier, for a core that has gone to sleep. Prompts
share nothing, so each thread may as well take its own; one alone gets one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


class Threads:
    """A number of threads in each of which PyTorch uses just that one.

    Attributes:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(
            count, "decoder", initializer=torch.set_num_threads, initargs=(1,)
        )

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """`work` done on each task; the results in the tasks' order.

        Raises:
            Exception: what `work` raised, at its task's turn.
        """
        return self._pool.map(work, tasks)
