"""On a GPU, this module brings many masks at once to the image's size, scores and packs them.

`full_size` does the same one mask at a time on a CPU. Here the reference's own two interpolations
run on the GPU. A batch's masks are copied to the host together, one bit a pixel, and only those
that are stable enough.

The stability threshold is the only choice that this module makes; `automask` makes the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from samserve.network.decoded import FourMasks
from samserve.network.encoder import Embedding
from samserve.network.families import NETWORK_SIDE

from .compact import PackedMask
from .full_size import LOW_RES_SIDE, MASK_THRESHOLD

PIXELS_AT_ONCE = 2**27
"""Pixels of full-size masks in one step: 4 bytes each, and a few copies exist at a time."""


@dataclass(frozen=True, eq=False)
class ScoredMask:
    """A mask that is stable enough.

    Attributes:
        index: its place in the list of (prompt, channel) pairs that the caller passed.
    """

    index: int
    mask: PackedMask


@torch.inference_mode()
def scored(
    decoded: FourMasks,
    masks: Sequence[tuple[int, int]],
    embedding: Embedding,
    offset: float,
    threshold: float,
    at_once: int,
) -> Iterator[ScoredMask]:
    """Yield the masks with a stability score of `threshold` or more, in the order of `masks`.

    Args:
        masks: (prompt, channel) of each mask; the masks of a prompt stand together.
        at_once: the number of prompts whose masks are made together.
    """
    height, width = embedding.original_size
    at_full_size = max(1, PIXELS_AT_ONCE // (height * width))
    prompts = list(dict.fromkeys(prompt for prompt, _ in masks))
    index = 0
    for first in range(0, len(prompts), at_once):
        batch = prompts[first : first + at_once]
        place = {prompt: i for i, prompt in enumerate(batch)}
        chosen = [(place[prompt], channel) for prompt, channel in masks if prompt in place]
        rows, channels = (list(column) for column in zip(*chosen, strict=True))
        low_res_masks = decoded.of_several(batch, slice(0, 4))[rows, channels]
        for part in torch.split(low_res_masks, at_full_size):
            yield from _scored(part, index, embedding, offset, threshold)
            index += len(part)


def _scored(
    low_res_masks: torch.Tensor,
    index: int,
    embedding: Embedding,
    offset: float,
    threshold: float,
) -> Iterator[ScoredMask]:
    logits = _upscaled(low_res_masks, embedding)
    intersection = (logits > MASK_THRESHOLD + offset).sum((1, 2))
    union = (logits > MASK_THRESHOLD - offset).sum((1, 2))
    stability = intersection.float() / union.float()  # NaN where both are empty
    kept = torch.nonzero(stability >= threshold)[:, 0]
    bits = _packed(logits[kept] > MASK_THRESHOLD).cpu().numpy()
    for i, mask, score in zip(kept.tolist(), bits, stability[kept].tolist(), strict=True):
        full = np.unpackbits(mask, axis=1, count=logits.shape[2]).view(np.bool_)
        yield ScoredMask(index + i, PackedMask.of(full, score))


def _upscaled(low_res_masks: torch.Tensor, embedding: Embedding) -> torch.Tensor:
    """Interpolate K×h×w logits of the input frame to K×H×W logits, one for each pixel."""
    inside = low_res_masks[:, None]
    if embedding.family.two_steps:
        in_h, in_w = embedding.input_size
        size = [side * NETWORK_SIDE // LOW_RES_SIDE for side in low_res_masks.shape[1:]]
        padded = F.interpolate(inside, size, mode="bilinear", align_corners=False)
        inside = padded[..., :in_h, :in_w]
    full = F.interpolate(inside, embedding.original_size, mode="bilinear", align_corners=False)
    return full[:, 0]


def _packed(masks: torch.Tensor) -> torch.Tensor:
    """Pack K×H×W bool into K×H×⌈W/8⌉ uint8, the first pixel in the highest bit."""
    count, height, width = masks.shape
    padded = F.pad(masks, (0, -width % 8)).view(count, height, -(-width // 8), 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    return (padded * weights).sum(-1, dtype=torch.uint8)
