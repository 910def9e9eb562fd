"""Each thread runs one task with one PyTorch thread; PyTorch's setting elsewhere stays."""

from __future__ import annotations

import threading

import pytest
import torch

from samserve.network.threads import Threads


def test_results_come_in_the_tasks_order() -> None:
    second_done = threading.Event()

    def work(task: int) -> int:
        if task == 0:
            assert second_done.wait(timeout=30)  # needs a second thread at the same time
        if task == 1:
            second_done.set()
        return 10 * task

    assert list(Threads(2).map(work, range(4))) == [0, 10, 20, 30]


def test_each_uses_one_thread_of_pytorch() -> None:
    before = torch.get_num_threads()
    inside = list(Threads(2).map(lambda _: torch.get_num_threads(), range(8)))
    assert inside == [1] * 8
    assert torch.get_num_threads() == before


def test_what_a_task_raises_is_raised() -> None:
    def work(task: int) -> int:
        return 1 // task

    with pytest.raises(ZeroDivisionError):
        list(Threads(2).map(work, [1, 0, 1]))
