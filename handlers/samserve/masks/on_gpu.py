"""Many masks at once to the image's size, scored, and packed, where their logits are: on a GPU.

What `masks` does one by one on a CPU, by the reference's own two interpolations. The masks of
a batch come to the host together, a bit a pixel, and only those that are stable enough.

Decides nothing beyond that threshold; the rest is `automask`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from samserve.network.decoder import Masks
from samserve.network.encoder import Embedding

from .full_size import LOW_RES_SIDE, MASK_THRESHOLD, NETWORK_SIDE, PackedMask

PROMPTS_PER_MASK = 16
"""A mask on its way through the last layers takes about the memory of so many prompts."""

PIXELS_AT_ONCE = 2**27
"""Of masks at full size, 4 bytes each, of which a few copies exist at a time."""


def masks_at_once(prompts_at_once: int) -> int:
    """How many prompts' masks to make at once on a device that decodes so many prompts."""
    return max(1, prompts_at_once // PROMPTS_PER_MASK)


@dataclass(frozen=True, eq=False)
class ScoredMask:
    """A mask, and which of those asked for it is."""

    index: int
    mask: PackedMask


@torch.inference_mode()
def scored(
    decoded: Masks,
    wanted: Sequence[tuple[int, int]],
    embedding: Embedding,
    offset: float,
    threshold: float,
    at_once: int,
) -> Iterator[ScoredMask]:
    """The masks with a stability score of `threshold` or more, in the order asked for.

    Args:
        wanted: (prompt, channel) of each mask, a prompt's masks together.
        at_once: prompts whose masks are made together.
    """
    height, width = embedding.original_size
    at_full_size = max(1, PIXELS_AT_ONCE // (height * width))
    prompts = list(dict.fromkeys(prompt for prompt, _ in wanted))
    index = 0
    for first in range(0, len(prompts), at_once):
        batch = prompts[first : first + at_once]
        place = {prompt: i for i, prompt in enumerate(batch)}
        chosen = [(place[prompt], channel) for prompt, channel in wanted if prompt in place]
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
    """K×h×w logits, of the input frame all that the image needs -> K×H×W, its pixels."""
    in_h, in_w = embedding.input_size
    size = [side * NETWORK_SIDE // LOW_RES_SIDE for side in low_res_masks.shape[1:]]
    padded = F.interpolate(low_res_masks[:, None], size, mode="bilinear", align_corners=False)
    inside = padded[..., :in_h, :in_w]
    full = F.interpolate(inside, embedding.original_size, mode="bilinear", align_corners=False)
    return full[:, 0]


def _packed(masks: torch.Tensor) -> torch.Tensor:
    """K×H×W bool -> K×H×⌈W/8⌉ uint8, the first pixel in the highest bit."""
    count, height, width = masks.shape
    padded = F.pad(masks, (0, -width % 8)).view(count, height, -(-width // 8), 8)
    weights = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=masks.device)
    return (padded * weights).sum(-1, dtype=torch.uint8)
