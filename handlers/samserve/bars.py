"""Progress bars, in a terminal and in a notebook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Report = Callable[[int, int], object]
"""A function that is called with (done, total)."""


@contextmanager
def reporting(progress: bool | Report | None, what: str, **options: Any) -> Iterator[Report | None]:
    """Yield the function to report progress to; None if nobody wants to know.

    Args:
        progress: True: show a bar within the block.
        what: the words before the bar.
        options: tqdm's.
    """
    if progress is None or progress is False:
        yield None
    elif progress is True:
        from tqdm.auto import tqdm

        with tqdm(desc=what, unit=" points", **options) as bar:

            def show(done: int, total: int) -> None:
                bar.total = total
                bar.update(done - bar.n)

            yield show
    else:
        yield progress
