"""This module chooses the device of a worker when it starts, and bounds the memory it takes.

TorchServe assigns its GPUs to the workers of a lane in turn. A worker uses the GPU that it was
assigned, or does not start. It never falls back to the CPU, because the operator would see only
that everything is many times slower.
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
    """The worker's device cannot be used. The message says why, and what the operator can do."""


def assigned(gpu_id: int | None, config: Mapping[str, Any]) -> torch.device:
    """Return the device of a worker.

    Args:
        gpu_id: the GPU that TorchServe assigned to the worker; None for the CPU.
        config: the model's YAML. TorchServe reads its `deviceType` and `deviceIds`, but starts
            the worker without a GPU, and without a warning, if it finds no such GPU.

    Raises:
        DeviceError: the GPU cannot be used, or the YAML requires one and none was assigned.
    """
    required_ids = config.get("deviceIds") or []
    if gpu_id is None:
        if config.get("deviceType") == "gpu" or required_ids:
            raise DeviceError(
                "The model's YAML requires a GPU (deviceType, deviceIds), but TorchServe found "
                "none: `nvidia-smi` must work where it starts, and number_of_gpu must not be 0."
            )
        return CPU
    if required_ids and gpu_id not in required_ids:
        raise DeviceError(
            f"The model's YAML requires GPUs {required_ids} (deviceIds), but some are missing: "
            f"TorchServe assigned GPU {gpu_id}."
        )
    if torch.cuda.is_available():
        if gpu_id < torch.cuda.device_count():
            return torch.device("cuda", gpu_id)
        why = f"it finds {torch.cuda.device_count()} GPUs"
    elif torch.backends.mps.is_available():
        return torch.device("mps")
    else:
        why = _cuda_failure()
    raise DeviceError(
        f"TorchServe assigned GPU {gpu_id}, which PyTorch {torch.__version__} cannot use: {why}. "
        "To use the CPU instead, set number_of_gpu=0 in config/config.properties."
    )


def device_named(name: str | torch.device | None) -> torch.device:
    """Return the device of this name of PyTorch. None: the first NVIDIA GPU, else the CPU.

    Raises:
        ValueError: PyTorch has no device of this name.
        DeviceError: the GPU cannot be used.
    """
    if name is None:
        return torch.device("cuda") if torch.cuda.is_available() else CPU
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise ValueError(f"PyTorch has no device {name!r}; use cpu or cuda.") from exc
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        why = _cuda_failure() if not torch.cuda.is_available() else "there is no such GPU"
        raise DeviceError(f"PyTorch {torch.__version__} cannot use the device {device}: {why}.")
    return device


def _cuda_failure() -> str:
    """Return PyTorch's reason why CUDA is not available."""
    try:
        torch.empty(0, device="cuda")
    except (RuntimeError, AssertionError) as exc:  # AssertionError: built without CUDA
        return str(exc).rstrip(".")
    return "it gives no reason"


def bound_memory(device: torch.device, share: float) -> None:
    """Let this process take at most this share of a GPU's memory, even if more is free."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(share, device)


def in_halves(
    work: Callable[[Sequence[Task]], list[Result]], batch: Sequence[Task]
) -> list[Result]:
    """Apply `work` to the batch, or to its two halves if the device runs out of memory.

    Raises:
        OutOfMemory: the device runs out of memory for a half, too.
    """
    try:
        return work(batch)
    except torch.OutOfMemoryError:
        pass  # Retry outside this block: the traceback would keep the failed run's tensors.
    half = -(-len(batch) // 2)
    try:
        halves = (batch[:half], batch[half:])
        return [result for part in halves if len(part) for result in work(part)]
    except torch.OutOfMemoryError as exc:
        raise out_of_memory() from exc


def out_of_memory() -> OutOfMemory:
    """Return the error that answers a request for which the device has too little memory."""
    return OutOfMemory("The device has too little memory left for this request; try again later.")
