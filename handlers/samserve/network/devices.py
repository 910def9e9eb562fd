"""Where a worker computes: chosen once, at its start, and refused there if it cannot be had.

TorchServe deals its GPUs out to the workers of a lane in turn; one it has given is taken, or
the worker does not start. Nothing falls back to the CPU by itself: that would be slower by a
factor that looks like a fault elsewhere.

Chooses the device and bounds what is taken of it; what runs there is `encoder`'s and `decoder`'s.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from samserve.errors import OutOfMemory

Task = TypeVar("Task")
Result = TypeVar("Result")

CPU = torch.device("cpu")


class DeviceError(Exception):
    """The device asked for cannot be used; the message says why, and what would help."""


def assigned(gpu_id: int | None, config: Mapping[str, Any]) -> torch.device:
    """The device of a worker.

    Args:
        gpu_id: the GPU that TorchServe gave it; None for none.
        config: the model's YAML, whose `deviceType` and `deviceIds` are for TorchServe. It
            does without, quietly, where it finds no such GPU.

    Raises:
        DeviceError: that GPU cannot be used, or was not given though the YAML wants it.
    """
    wanted = config.get("deviceIds") or []
    if gpu_id is None:
        if config.get("deviceType") == "gpu" or wanted:
            raise DeviceError(
                "The model's YAML wants a GPU (deviceType, deviceIds), and TorchServe found none: "
                "`nvidia-smi` must work where it starts, and number_of_gpu must not be 0."
            )
        return CPU
    if wanted and gpu_id not in wanted:
        raise DeviceError(
            f"The model's YAML wants GPUs {wanted} (deviceIds), which are not all there: "
            f"TorchServe gave number {gpu_id}."
        )
    if torch.cuda.is_available():
        if gpu_id < torch.cuda.device_count():
            return torch.device("cuda", gpu_id)
        why = f"it sees {torch.cuda.device_count()} of them"
    elif torch.backends.mps.is_available():
        return torch.device("mps")
    else:
        why = _why_not()
    raise DeviceError(
        f"TorchServe gave GPU {gpu_id}, which PyTorch {torch.__version__} cannot use: {why}. "
        "To do without, set number_of_gpu=0 in config/config.properties."
    )


def _why_not() -> str:
    try:
        torch.empty(0, device="cuda")
    except (RuntimeError, AssertionError) as exc:  # the latter where it was built without
        return str(exc).rstrip(".")
    return "no reason given"


def bound_memory(device: torch.device, share: float) -> None:
    """Take at most this share of a GPU's memory: beyond it, out of memory, whoever has the rest."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device)


def in_halves(
    work: Callable[[Sequence[Task]], list[Result]], batch: Sequence[Task]
) -> list[Result]:
    """`work` on the batch, or on its two halves where the device's memory did not do for all.

    Raises:
        OutOfMemory: nor did it for a half.
    """
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        pass  # and on beyond this block, which would keep alive what the failed run holds
    half = -(-len(batch) // 2)
    try:
        return [found for part in (batch[:half], batch[half:]) if len(part) for found in work(part)]
    except torch.OutOfMemoryError as exc:
        raise out_of_memory() from exc


def out_of_memory() -> OutOfMemory:
    """What a request is told."""
    return OutOfMemory("The device has too little memory left for this request; try again later.")
