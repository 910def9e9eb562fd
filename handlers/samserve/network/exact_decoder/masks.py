"""This module has the decoded prompts, whose masks are computed when they are needed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .image import SIDE, PreparedImage
from .upscaler import Upscaler, UpscalerInputs, Upscaling


@dataclass(frozen=True)
class ExactMasks:
    """B decoded prompts. A prompt's mask logits are computed when they are first needed.

    Attributes:
        iou_predictions: B×4, of the single mask and then of the three masks for ambiguous prompts.
    """

    iou_predictions: torch.Tensor
    _upscaler: Upscaler
    _upscale: Upscaling
    _up: torch.Tensor  # 256×256, U's side through the first transposed convolution
    _image: PreparedImage
    _hyper: torch.Tensor  # B×4×32, the hypernetworks' weights: masks from the upscaled keys
    _attention: torch.Tensor  # B×2J×N: d₀·A₀ and below it A₁
    _u: torch.Tensor  # B×2J×256: U₀γ₀ and below it U₁
    _d0: torch.Tensor  # B×N
    _d1: torch.Tensor  # B×N

    @torch.inference_mode()
    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        """Return C×4h×4w logits: those of one prompt's four masks that `channels` selects."""
        return self._upscale(*self._inputs(prompt, channels))

    @torch.inference_mode()
    def of_several(self, prompts: list[int], channels: slice) -> torch.Tensor:
        """Return K×C×4h×4w logits of several prompts, computed in one batch."""
        masks: torch.Tensor = self._upscaler(*self._inputs(prompts, channels))
        return masks

    def _inputs(self, prompts: int | list[int], channels: slice | list[int]) -> UpscalerInputs:
        """Return the arguments of `Upscaler.forward`."""
        return (
            self._image.upscaled,
            self._covered(self._attention[prompts]),
            self._u[prompts] @ self._up,
            self._covered(self._d0[prompts]),
            self._covered(self._d1[prompts]),
            self._hyper[prompts, channels],
            *self._image.maps,
        )

    def _covered(self, of_pixels: torch.Tensor) -> torch.Tensor:
        """…×N -> …×h×w, the pixels that the image covers."""
        height, width = self._image.upscaled.shape[:2]
        grid = of_pixels.view(*of_pixels.shape[:-1], SIDE, SIDE)
        return grid[..., :height, :width].contiguous()
