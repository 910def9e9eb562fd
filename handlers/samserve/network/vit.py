# Follows segment-anything's modeling/image_encoder.py (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module is segment-anything's image encoder (vit_b, vit_l, vit_h), rewritten with less work.

It is the same function of the same weights as `image_encoder.py` of segment-anything; only float
rounding differs. The differences:

- A score is q·k + q·R_row + q·R_column, where R depends on the distance of the key in rows and
  columns (the *decomposed* relative position). The original computes each of the three as N×N for
  every head. But the second is one number for each query and key *row*, and the third one for each
  query and key column (N×64 each). On a CPU they are added to a strip of scores that is still in
  the cache. On other devices they are part of the product: with [q, q·R_row, q·R_column] for a
  query and [k, one-hot of its row, one-hot of its column] for a key, the product *is* the score, so
  that any fused attention kernel computes it, and N×N is never in memory.
- Windows of 14×14 do not divide 64×64, so the image is padded to 70×70 tokens, which take part in
  attention. The queries, keys and values of the padding are the biases: they are filled in instead
  of computed, and the output of the padding is not projected.

Input and output are those of the original encoder; `encoder.py` chooses between the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .windows import from_windows, to_windows

_STRIP = 2
"""The number of rows of queries in a strip on a CPU: their scores for all keys take some MB."""


class ViT(nn.Module):
    """The rewritten encoder.

    Args:
        encoder: a `segment_anything.modeling.ImageEncoderViT`. Its weights are used without a
            copy, so weights that are mapped from a file stay mapped.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.patch_embed = encoder.patch_embed.proj
        self.pos_embed = encoder.pos_embed
        self.blocks = nn.ModuleList(_Block(block) for block in encoder.blocks)
        self.neck = encoder.neck

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return B×256×64×64 features of B×3×1024×1024 normalised pixels."""
        x = self.patch_embed(pixels).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        features: torch.Tensor = self.neck(x.permute(0, 3, 1, 2))
        return features


class _Block(nn.Module):
    """A transformer block: attention and an MLP, each with a residual; B×H×W×C -> B×H×W×C."""

    rows: torch.Tensor
    columns: torch.Tensor
    positions: torch.Tensor

    def __init__(self, block: Any) -> None:
        super().__init__()
        attention = block.attn
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.qkv, self.project = attention.qkv, attention.proj
        self.window: int = block.window_size
        self.heads: int = attention.num_heads
        self.scale: float = attention.scale
        side = (
            len(attention.rel_pos_h) + 1
        ) // 2  # of the attention: a window's or the image's, in tokens
        # side × width × side: for a query's row (column), one vector for each row (column) of keys.
        apart = torch.arange(side)[:, None] - torch.arange(side) + side - 1
        self.register_buffer("rows", attention.rel_pos_h[apart].mT.contiguous())
        self.register_buffer("columns", attention.rel_pos_w[apart].mT.contiguous())
        one = torch.eye(side).to(self.rows)
        by_row, by_column = one.repeat_interleave(side, 0), one.repeat(side, 1)
        self.register_buffer("positions", torch.cat([by_row, by_column], 1))  # side²×2·side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = (x.shape[1], x.shape[2])
        qkv = self.qkv(self.norm1(x))
        if self.window:
            qkv = to_windows(qkv, self.window, self.qkv.bias)
        attended = self._attend(qkv)
        if self.window:
            attended = from_windows(attended, size)
        x = x + self.project(attended)
        x = x + self.mlp(self.norm2(x))
        return x

    def _attend(self, qkv: torch.Tensor) -> torch.Tensor:
        """B×side×side×3C queries, keys and values -> B×side×side×C."""
        batch, side = qkv.shape[:2]
        # 3×B×heads×side²×width
        q, k, v = qkv.view(batch, side**2, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        on_grid = q.view(batch, self.heads, side, side, -1)
        rows = on_grid @ self.rows  # B×heads×side×side×side
        columns = (on_grid.transpose(2, 3) @ self.columns).transpose(2, 3)
        q = q * self.scale
        if q.device.type == "cpu" and not torch.compiler.is_exporting():
            out = _in_strips(q, k, v, rows, columns)
        else:
            out = _fused(q, k, v, rows.flatten(2, 3), columns.flatten(2, 3), self.positions)
        return out.transpose(1, 2).reshape(batch, side, side, -1)


def _fused(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rows: torch.Tensor,
    columns: torch.Tensor,
    positions: torch.Tensor,
) -> torch.Tensor:
    """Return attention by one kernel, with positions within the product; B×heads×N×width.

    The kernels require queries, keys and values of one width, a multiple of eight.
    """
    width = v.shape[-1]
    missing = -(width + positions.shape[1]) % 8
    q = torch.cat([q, rows, F.pad(columns, (0, missing))], -1)
    k = torch.cat([k, F.pad(positions, (0, missing)).expand(*k.shape[:2], -1, -1)], -1)
    v = F.pad(v, (0, q.shape[-1] - width))
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)[..., :width]


def _in_strips(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Return the same as `_fused`, strip by strip: faster on a CPU, where the cache is the limit.

    Args:
        rows, columns: B×heads×side×side×side.
    """
    side = rows.shape[2]
    keys, values = k.flatten(0, 1).mT, v.flatten(0, 1)
    rows, columns = rows.flatten(0, 1), columns.flatten(0, 1)
    queries = q.flatten(0, 1).view(-1, side, side, q.shape[-1])
    out = torch.empty_like(queries)
    for start in range(0, side, _STRIP):
        strip = slice(start, start + _STRIP)
        scores = torch.bmm(queries[:, strip].flatten(1, 2), keys)
        grid = scores.view(len(scores), -1, side, side, side)  # strip, query, key row, column
        grid += rows[:, strip, :, :, None]
        grid += columns[:, strip, :, None, :]
        out[:, strip] = torch.bmm(scores.softmax(-1), values).view_as(out[:, strip])
    return out.flatten(1, 2).view_as(q)
