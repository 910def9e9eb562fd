# Follows sam2's modeling/backbones/hieradet.py and image_encoder.py (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module runs SAM 2's image encoder, with less work than the original.

It is the same function of the same weights as `image_encoder.py` and `hieradet.py` of sam2, with
what `SAM2ImagePredictor.set_image` does after them; only float rounding differs. The differences:

- The two fine maps of the feature pyramid are used once: a convolution reduces their 256 channels
  to 32 and 64. Both convolutions are 1×1 with nothing between, so they are one matrix, and the 256
  channels of 256×256 pixels are never computed.
- Where windows do not divide the image, the tokens of the padding have the biases as queries, keys
  and values: they are filled in instead of computed, and their output is not projected.
- The table of positions is enlarged once, and not for each image.
- The fine maps come out in the order in which the decoder's upscaler reads them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .sam2 import FIRST_STAGE_SIDE, SIDE, Sam2, Trunk
from .windows import from_windows, to_windows


class Hiera(nn.Module):
    """The image encoder, ready to run.

    Args:
        model: the network. Its large weights are used without a copy, so weights that are mapped
            from a file stay mapped.
    """

    positions: torch.Tensor

    @torch.no_grad()
    def __init__(self, model: Sam2) -> None:
        super().__init__()
        trunk: Any = model.image_encoder.trunk
        self.patch_embed = trunk.patch_embed.proj
        self.register_buffer("positions", _positions(trunk))
        self.blocks = nn.ModuleList(_Block(block) for block in trunk.blocks)
        self.stage_ends = trunk.stage_ends
        neck: Any = model.image_encoder.neck
        last, third, second, first = (part.conv for part in neck.convs)
        decoder = model.mask_decoder
        self.to_fine = _composed(first, decoder.conv_s0)
        self.to_coarse = _composed(second, decoder.conv_s1)
        self.to_features = _linear(third)
        self.to_features.bias.add_(model.no_mem_embed[0, 0])
        self.to_features_below = _linear(last)

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the embedding and the two maps of the upscaler.

        Args:
            pixels: B×3×1024×1024 normalised pixels.

        Returns:
            B×256×64×64 features, B×64×64×256 and B×64×64×512: for each of the embedding's pixels
            the map's 2×2 pixels of 64 channels, and its (2×2)×(2×2) pixels of 32 channels.
        """
        x = self.patch_embed(pixels).permute(0, 2, 3, 1) + self.positions
        stages = []
        for number, block in enumerate(self.blocks):
            x = block(x)
            if number in self.stage_ends:
                stages.append(x)
        first, second, third, last = stages
        below = self.to_features_below(last)
        features = self.to_features(third) + _doubled(below)
        fine = self.to_fine(first).view(-1, SIDE, 2, 2, SIDE, 2, 2, 32)
        coarse = self.to_coarse(second).view(-1, SIDE, 2, SIDE, 2, 64)
        return (
            features.permute(0, 3, 1, 2).contiguous(),
            coarse.permute(0, 1, 3, 2, 4, 5).reshape(-1, SIDE, SIDE, 256),
            fine.permute(0, 1, 4, 2, 5, 3, 6, 7).reshape(-1, SIDE, SIDE, 512),
        )


def as_maps(coarse: torch.Tensor, fine: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the maps as sam2's decoder takes them: 64×128×128 and 32×256×256.

    Args:
        coarse, fine: 64×64×256 and 64×64×512, as `Hiera` returns them.
    """
    coarse = coarse.view(SIDE, SIDE, 2, 2, 64).permute(4, 0, 2, 1, 3)
    fine = fine.view(SIDE, SIDE, 2, 2, 2, 2, 32).permute(6, 0, 2, 4, 1, 3, 5)
    return coarse.reshape(64, 2 * SIDE, 2 * SIDE), fine.reshape(32, 4 * SIDE, 4 * SIDE)


class _Block(nn.Module):
    """A transformer block: attention and an MLP, each with a residual; B×H×W×C."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2 = block.norm1, block.norm2
        self.qkv, self.project = block.attn.qkv, block.attn.proj
        self.widen, self.narrow = block.mlp.layers
        self.shortcut = block.proj
        self.heads, self.window = block.heads, block.window

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed: torch.Tensor = self.norm1(x)
        if self.shortcut is not None:
            x = _pooled(self.shortcut(normed))
        qkv = self.qkv(normed)
        if self.window:
            qkv = to_windows(qkv, self.window, self.qkv.bias)
        attended = self._attend(qkv)
        if self.window:
            attended = from_windows(attended, (x.shape[1], x.shape[2]))
        x = x + self.project(attended)
        x = x + self.narrow(F.gelu(self.widen(self.norm2(x))))
        return x

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """B×side×side×3C queries, keys and values -> B×side×side×C, or half that side."""
        batch, side = qkv.shape[:2]
        q, k, v = qkv.chunk(3, dim=-1)
        if self.shortcut is not None:
            q = _pooled(q)
        out = F.scaled_dot_product_attention(self._by_head(q), self._by_head(k), self._by_head(v))
        side = q.shape[1]
        return out.transpose(1, 2).reshape(batch, side, side, -1)

    def _by_head(self, x: torch.Tensor) -> torch.Tensor:
        """B×side×side×C -> B×heads×side²×width."""
        return x.reshape(x.shape[0], x.shape[1] * x.shape[2], self.heads, -1).transpose(1, 2)


def _pooled(x: torch.Tensor) -> torch.Tensor:
    """Return the largest of each 2×2 tokens; B×H×W×C -> B×H/2×W/2×C."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).amax((2, 4))


def _doubled(x: torch.Tensor) -> torch.Tensor:
    """Repeat each pixel in a square of 2×2; B×H×W×C -> B×2H×2W×C."""
    batch, height, width, channels = x.shape
    repeated = x[:, :, None, :, None].expand(batch, height, 2, width, 2, channels)
    return repeated.reshape(batch, 2 * height, 2 * width, channels)


def _positions(trunk: Trunk) -> torch.Tensor:
    """Return what is added to the first stage's tokens, 1×256×256×C."""
    side = FIRST_STAGE_SIDE
    enlarged = F.interpolate(trunk.pos_embed, size=(side, side), mode="bicubic")
    times = side // trunk.pos_embed_window.shape[-1]
    return (enlarged + trunk.pos_embed_window.tile(1, 1, times, times)).permute(0, 2, 3, 1)


def _linear(conv: Any) -> nn.Linear:
    """Return a copy of a 1×1 convolution as a linear layer of the last dimension."""
    linear = nn.Linear(conv.in_channels, conv.out_channels).to(conv.weight)
    linear.weight.copy_(conv.weight[:, :, 0, 0])
    linear.bias.copy_(conv.bias)
    return linear.requires_grad_(False)


def _composed(first: Any, second: Any) -> nn.Linear:
    """Return two 1×1 convolutions as one linear layer, composed in double precision."""
    linear = nn.Linear(first.in_channels, second.out_channels).to(first.weight)
    outer = second.weight[:, :, 0, 0].double()
    linear.weight.copy_(outer @ first.weight[:, :, 0, 0].double())
    linear.bias.copy_(outer @ first.bias.double() + second.bias.double())
    return linear.requires_grad_(False)
