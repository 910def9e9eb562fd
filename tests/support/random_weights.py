"""Checkpoints of any model type in the official format, with random weights: the same each time.

For tests of what depends on a type's shapes and not on what it has learnt. Activations stay
finite and outputs differ from place to place; nothing is left at what a builder initialises
it with, so that a tensor that is not loaded shows.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch

from samserve.model_types import sha256_of
from samserve.network.checkpoints import unallocated_model


def state_dict(model_type: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """The checkpoint's tensors, by the names and in the shapes of the type."""
    generator = torch.Generator().manual_seed(seed)
    shapes = unallocated_model(model_type).state_dict()
    return {key: _values(key, tensor, generator) for key, tensor in shapes.items()}


def save(model_type: str, folder: Path) -> Path:
    """The checkpoint, and beside it what `make weights` would write of its origin."""
    path = folder / f"{model_type}.pt"
    torch.save(state_dict(model_type), path)
    told = {"type": model_type, "name": "default", "url": "", "source": "random"}
    path.with_suffix(".json").write_text(json.dumps({**told, "sha256": sha256_of(path)}))
    return path


def _values(key: str, shape: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not shape.is_floating_point():
        return torch.ones(shape.shape, dtype=shape.dtype)
    values = torch.empty(shape.shape)
    if key.endswith("gaussian_matrix"):
        return values.normal_(generator=generator)
    if "pos" in key:
        return values.normal_(std=0.1, generator=generator)
    if values.ndim > 1:
        return values.normal_(std=0.7 / math.sqrt(values[0].numel()), generator=generator)
    noise = values.normal_(std=0.1, generator=generator)
    # Of norms: scales and variances are about 1, and positive.
    return noise if key.endswith(("bias", "running_mean")) else noise.exp_()
