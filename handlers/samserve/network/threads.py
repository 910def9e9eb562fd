"""This module runs several prompts at once: one thread per prompt, not all in each operation.

Decoding a prompt is hundreds of small operations. If each is shared out among threads, it ends in a
barrier, at which all wait for the thread that the system has just descheduled: with another busy
process on the machine, automask took several times as long. And the first click after a pause
would wait, at each barrier, for a core that was asleep. Prompts share no state, so each runs in one
thread, and a single prompt uses one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


class Threads:
    """A pool of threads, in each of which PyTorch uses one thread only.

    Attributes:
        count: the number of threads.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(
            count, "decoder", initializer=torch.set_num_threads, initargs=(1,)
        )

    def map(self, work: Callable[[Task], Result], tasks: Iterable[Task]) -> Iterator[Result]:
        """Apply `work` to each task, and yield the results in the order of the tasks.

        Raises:
            Exception: an exception that `work` raised, when the result of its task is read.
        """
        return self._pool.map(work, tasks)
