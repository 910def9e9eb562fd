"""Checks that there is room for more weights: a number, and memory for their workers."""

from __future__ import annotations

from pathlib import Path

from samserve.errors import NoRoom
from samserve.machine import available_memory, resident_memory
from samserve.serving.lanes import lanes_of

from .torchserve import TorchServe, ready_workers


def check_number(folder: Path, limit: int) -> None:
    """Check that fewer weights are registered than the limit.

    Args:
        folder: the folder of registered weights.

    Raises:
        NoRoom: as many are registered.
    """
    names = sorted(path.stem for path in folder.glob("*.pt"))
    if len(names) >= limit:
        there = f": {', '.join(names)}"[:200] if names else ""
        raise NoRoom(
            f"{len(names)} weights are registered{there}. The limit is {limit} "
            "(SAMSERVE_MAX_WEIGHTS). To remove weights, stop the server, remove model_store/"
            "<type>.<name>.mar and the files named so in weights/registered/, and start it again."
        )


async def check_memory(torchserve: TorchServe, model_type: str) -> None:
    """Check that the memory suffices for workers like those of the model type.

    The new lanes get as many workers as those of the type. A worker that has worked keeps more
    memory than a new one takes, so the smallest of a lane counts.

    Raises:
        NoRoom: less memory is available.
        TorchServeError: TorchServe does not describe the lanes.
    """
    needed, n_workers = 0, 0
    for lane in lanes_of([model_type]):
        described = await torchserve.lane(lane)
        sizes = [resident_memory(pid) for pid in ready_workers(described)]
        known = [size for size in sizes if size is not None]
        if known:
            n_workers += max(1, described["minWorkers"])
            needed += max(1, described["minWorkers"]) * min(known)
    available = available_memory()
    if available is not None and available < needed:
        raise NoRoom(
            f"{n_workers} workers of {model_type} take {needed // 2**20} MiB of memory, and "
            f"{available // 2**20} MiB are available."
        )
