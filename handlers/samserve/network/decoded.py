"""This module has the decoded prompts, and the choice of the masks that answer them.

The network computes four masks for a prompt: one by itself, and three for ambiguous prompts. The
two families choose differently among them.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

STABILITY_OFFSET = 0.05
STABILITY_THRESH = 0.98
"""SAM 2's `dynamic_multimask_stability_delta` and `dynamic_multimask_stability_thresh`."""


class FourMasks(Protocol):
    """B decoded prompts with four masks each.

    Attributes:
        iou_predictions: B×4.
    """

    @property
    def iou_predictions(self) -> torch.Tensor: ...

    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        """Return C×h×w logits of one prompt: the part of 256×256 that the image's pixels need."""
        ...

    def of_several(self, prompts: list[int], channels: slice) -> torch.Tensor:
        """Return K×C×h×w logits of several prompts, computed in one batch, as suits a GPU."""
        ...


class Masks(FourMasks, Protocol):
    """B decoded prompts with four masks each, of which one or three answer the prompt."""

    def channels(self, multimask_output: bool) -> NDArray[np.intp]:
        """Return which masks answer each prompt: B×3 if it may be ambiguous, or B×1."""
        ...


class FirstOrThree:
    """SAM 1's choice: the first mask, or the other three."""

    def __init__(self, masks: FourMasks) -> None:
        self.iou_predictions = masks.iou_predictions
        self.low_res_masks = masks.low_res_masks
        self.of_several = masks.of_several

    def channels(self, multimask_output: bool) -> NDArray[np.intp]:
        """Return which masks answer each prompt: B×3 or B×1."""
        chosen = [1, 2, 3] if multimask_output else [0]
        return np.tile(np.array(chosen), (len(self.iou_predictions), 1))


class StableOrBest:
    """SAM 2's choice: the first mask if it is stable, else the best of the other three.

    Source: sam2's `MaskDecoder._dynamic_multimask_via_stability`.

    Args:
        at_once: the number of prompts whose masks are made together, on a device other than a CPU.
    """

    def __init__(self, masks: FourMasks, at_once: int) -> None:
        self._masks = masks
        self._at_once = at_once
        self.iou_predictions = masks.iou_predictions
        self.of_several = masks.of_several
        self._answers: dict[int, tuple[int, torch.Tensor]] = {}

    def channels(self, multimask_output: bool) -> NDArray[np.intp]:
        """Return which masks answer each prompt: B×3 or B×1."""
        count = len(self.iou_predictions)
        if multimask_output:
            return np.tile(np.array([1, 2, 3]), (count, 1))
        best = 1 + self.iou_predictions[:, 1:].argmax(1)
        if self.iou_predictions.device.type == "cpu":
            chosen = [self._chosen(prompt, int(best[prompt])) for prompt in range(count)]
            return np.array(chosen).reshape(count, 1)
        stable = torch.cat(
            [
                _is_stable(self.of_several(prompts, slice(0, 1))[:, 0])
                for prompts in self._batches(count)
            ]
        )
        return torch.where(stable, 0, best)[:, None].cpu().numpy()

    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        """Return C×h×w logits of one prompt."""
        if prompt in self._answers and isinstance(channels, list):
            channel, logits = self._answers[prompt]
            if channels == [channel]:
                return logits
        return self._masks.low_res_masks(prompt, channels)

    def _batches(self, count: int) -> list[list[int]]:
        prompts = list(range(count))
        return [prompts[i : i + self._at_once] for i in range(0, count, self._at_once)]

    def _chosen(self, prompt: int, best: int) -> int:
        """Choose the mask of one prompt, and keep its logits: the caller needs them next."""
        # Both are computed together, because a second mask is little work beside the first.
        first, other = self._masks.low_res_masks(prompt, [0, best])
        channel, logits = (0, first) if _is_stable(first[None])[0] else (best, other)
        self._answers[prompt] = channel, logits[None]
        return channel


def _is_stable(logits: torch.Tensor) -> torch.Tensor:
    """Return for K×h×w logits which of the masks hardly change with the threshold."""
    inner = (logits > STABILITY_OFFSET).sum((1, 2)).float()
    outer = (logits > -STABILITY_OFFSET).sum((1, 2)).float()
    return torch.where(outer > 0, inner / outer, 1.0) >= STABILITY_THRESH
