# Follows segment-anything's modeling/mask_decoder.py (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module upscales the decoded image tokens to mask logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_STRIP = 1024
"""The number of pixels that are upscaled together: their activations fit the cache."""

UpscalerInputs = tuple[torch.Tensor, ...]

Upscaling = Callable[..., torch.Tensor]
"""A function with the arguments and the result of `Upscaler.forward`."""


class Upscaler(nn.Module):
    """Computes mask logits: keys₂ through the transposed convolutions, times the hypernetworks.

    A transposed convolution with a 2×2 kernel and stride 2 is a linear map of each pixel, so pixels
    are the rows of all products.

    Args:
        decoder: the original mask decoder.
        c: 256, the constant c through the first convolution.
        bias: 256, β₁ through the first convolution, plus its bias.
    """

    c: torch.Tensor
    bias: torch.Tensor
    weight2: torch.Tensor
    bias2: torch.Tensor

    def __init__(self, decoder: Any, c: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        second = decoder.output_upscaling[3]
        self.norm = decoder.output_upscaling[1]
        self.register_buffer("c", c)
        self.register_buffer("bias", bias)
        self.register_buffer("weight2", second.weight.permute(0, 2, 3, 1).flatten(1).contiguous())
        self.register_buffer("bias2", second.bias.repeat(4))

    def forward(
        self,
        upscaled: torch.Tensor,
        attention: torch.Tensor,
        u: torch.Tensor,
        d0: torch.Tensor,
        d1: torch.Tensor,
        hyper: torch.Tensor,
        coarse: torch.Tensor | None = None,
        fine: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the logits of C masks of a prompt.

        With B prompts, the result and the arguments have a first dimension B. The arguments that
        belong to the image (`upscaled`, `coarse`, `fine`) do not have it.

        Args:
            upscaled: h×w×256, the image's part.
            attention: 2J×h×w.
            u: 2J×256, through the first convolution.
            d0, d1: h×w.
            hyper: C×32.
            coarse: h×w×256, the image's map that SAM 2 adds after the first convolution.
            fine: h×w×512, the map that it adds after the second one.

        Returns:
            C×4h×4w logits.
        """
        height, width = d0.shape[-2:]
        x = upscaled.flatten(0, 1) * d0.flatten(-2)[..., None] + attention.flatten(-2).mT @ u
        x = (x + self.c) * d1.flatten(-2)[..., None] + self.bias
        if coarse is not None:
            x = x + coarse.flatten(0, 1)
        x = x.view(-1, 64)  # a row for each of the four pixels that a pixel becomes
        x = F.layer_norm(x, (64,), self.norm.weight, self.norm.bias, self.norm.eps)
        x = F.gelu(x) @ self.weight2 + self.bias2
        if fine is not None:
            x = x.view(*hyper.shape[:-2], -1, 512) + fine.flatten(0, 1)
        x = F.gelu(x)
        logits = hyper @ x.view(*hyper.shape[:-2], -1, 32).mT
        # A pixel's 16 logits are adjacent: (dy, dx) of the first convolution, then the second.
        logits = logits.view(-1, height, width, 2, 2, 2, 2)
        masks = logits.permute(0, 1, 3, 5, 2, 4, 6)
        return masks.reshape(*hyper.shape[:-1], 4 * height, 4 * width)

    def in_strips(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Like `forward` for one prompt, in strips of rows that fit the processor's cache."""
        upscaled, attention, u, d0, d1, hyper, *maps = inputs
        height, width = d0.shape
        step = max(1, _STRIP // width)
        strips = [slice(i, i + step) for i in range(0, height, step)]
        return torch.cat(
            [
                self(upscaled[s], attention[:, s], u, d0[s], d1[s], hyper, *(m[s] for m in maps))
                for s in strips
            ],
            dim=1,
        )
