"""This module has checkpoints as training programs write them, and a malicious object."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")

Tensors = dict[str, torch.Tensor]


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + key: tensor for key, tensor in tensors.items()}


class Malice:
    """An object that touches a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.victim,)


@contextmanager
def foreign() -> Iterator[types.ModuleType]:
    """Let a package with a class and a function exist within the block only."""
    module = types.ModuleType("torch_em")

    def transform(value: object) -> object:
        raise AssertionError("it was called")

    class Dataset:
        def __init__(self) -> None:
            self.paths, self.transform = [Path("/data/a.tif")], module.transform

        def __setstate__(self, state: object) -> None:
            raise AssertionError("it was built")

    for name, value in (("Dataset", Dataset), ("transform", transform)):
        value.__module__, value.__qualname__ = "torch_em", name
        setattr(module, name, value)
    sys.modules["torch_em"] = module
    try:
        yield module
    finally:
        del sys.modules["torch_em"]


def training_checkpoint(tensors: Tensors, **more: Any) -> dict[str, Any]:
    """Return a checkpoint like those that torch_em's trainer writes for micro-sam."""
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(3)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    return {
        "iteration": 250,
        "epoch": 3,
        "best_epoch": 2,
        "best_metric": np.float64(0.4),
        "current_metric": np.array([0.4, 0.5]),
        "model_state": prefixed("sam.", tensors),
        "optimizer_state": optimizer.state_dict(),
        "scheduler_state": scheduler.state_dict(),
        "scaler_state": {"scale": 65536.0, "growth_factor": 2.0},
        "init": {"name": "nuclei", "save_root": Path("/models"), "device": CPU},
        "train_time": 3600.5,
        "timestamp": "2024-05-01:00:00",
        **more,
    }


def decoder_state() -> Tensors:
    names = ("base.block.0.weight", "out_conv.weight", "decoder.samplers.0.conv.weight")
    return {name: torch.rand(2, 2) for name in names}


def written(folder: Path, content: Any, **how: Any) -> Path:
    path = folder / "vit_t.pt"
    torch.save(content, path, **how)
    return path
