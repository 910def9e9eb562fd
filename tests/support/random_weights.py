"""Checkpoints of any model type in the official format, with reproducible random weights.

SAM 2's lie under the key `model`, beside tensors that only videos need.

They serve tests that depend on a type's shapes and not on trained values. Activations stay finite
and outputs differ from place to place. No tensor keeps its initial value, so a tensor that was not
loaded changes the output.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch

from samserve.model_types import sha256_of
from samserve.network.checkpoints import unallocated_model
from samserve.network.sam2 import SHAPES

VIDEO_TENSORS = {
    "maskmem_tpos_enc": torch.ones(7, 1, 1, 64),
    "no_obj_ptr": torch.ones(1, 256),
    "memory_encoder.out_proj.bias": torch.ones(64),
    "memory_attention.norm.weight": torch.ones(256),
    "sam_mask_decoder.pred_obj_score_head.layers.0.weight": torch.ones(256, 256),
}
"""Some of the tensors of SAM 2's checkpoints that only videos need."""


def state_dict(model_type: str, seed: int = 0) -> dict[str, torch.Tensor]:
    """Return the checkpoint's tensors, with the names and shapes of the type."""
    generator = torch.Generator().manual_seed(seed)
    shapes = unallocated_model(model_type).state_dict()
    return {key: _values(key, tensor, generator) for key, tensor in shapes.items()}


def save(model_type: str, folder: Path) -> Path:
    """Save a checkpoint, and beside it the JSON file of its origin, as `make weights` does."""
    path = folder / f"{model_type}.pt"
    content: dict[str, Any] = state_dict(model_type)
    if model_type in SHAPES:
        content = {"model": {**content, **VIDEO_TENSORS}}
    torch.save(content, path)
    origin = {"type": model_type, "name": "default", "url": "", "source": "random"}
    path.with_suffix(".json").write_text(json.dumps({**origin, "sha256": sha256_of(path)}))
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
    # The scales and variances of norms are positive, and about 1.
    return noise if key.endswith(("bias", "running_mean")) else noise.exp_()


def lively(model_type: str, seed: int = 0, sparse: float = 0.0) -> dict[str, torch.Tensor]:
    """Return weights of a SAM 2 type whose masks have outlines everywhere.

    Its logits are mostly far from zero, as those of trained weights are, and cross it in many
    places. The predicted IoUs differ from prompt to prompt. Of single masks, some are stable and
    some are not, so both cases of SAM 2's choice occur.

    Args:
        sparse: how far the logits are shifted down. With 10 and more, the masks' boxes differ.
    """
    scales = {
        "output_hypernetworks_mlps.": 30.0,
        "iou_prediction_head.": 10.0,
        "output_upscaling.": 2.0,
        "conv_s": 0.3,
    }
    weights = state_dict(model_type, seed)
    for key, tensor in weights.items():
        if "hypernetworks" in key and key.endswith(".layers.2.bias"):
            tensor.sub_(sparse)  # the upscaled features are positive in the mean
        name = key.removeprefix("sam_mask_decoder.")
        last = ".layers." not in name or name.endswith(".layers.2.weight")
        for part, scale in scales.items():
            fits = part != "output_upscaling." or tensor.ndim > 1
            if name != key and name.startswith(part) and last and fits:
                tensor.mul_(scale)
    return weights
