"""segment-anything's image encoder (vit_b, vit_l, vit_h): the same numbers with less work.

Source: `image_encoder.py` of segment-anything. The same function of the same weights; only float
rounding differs. What is done otherwise:

- A score is q·k + q·R_row + q·R_column, where R depends on how many rows and columns the key is
  away (the *decomposed* relative position). As written, each of the three is N×N for every head,
  and two of them need never be: the row's part is one number for each query and key *row*, the
  column's likewise (N×64 each). On a CPU they are added to a strip of scores that is still in the
  cache. Elsewhere they ride along inside the product: with [q, q·R_row, q·R_column] for a query
  and [k, one-hot of its row, one-hot of its column] for a key, the product *is* the score, so that
  any fused attention kernel does, and N×N is never formed.
- Windows of 14×14 do not divide 64×64, so the image is padded to 70×70 and the empty tokens take
  part in attention. Their queries, keys and values are the biases alone: they are filled in, and
  not computed, nor what comes out of them.

Takes and gives what the reference's encoder does; `encoder.py` chooses between the two.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

_STRIP = 2
"""Rows of queries whose scores for all keys are worked on at once, on a CPU: some megabytes."""


class ViT(nn.Module):
    """The rewritten encoder.

    Args:
        encoder: a `segment_anything.modeling.ImageEncoderViT`, whose weights it uses as they are:
            where they are mapped from a file, they stay so.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.patch_embed = encoder.patch_embed.proj
        self.pos_embed = encoder.pos_embed
        self.blocks = nn.ModuleList(_Block(block) for block in encoder.blocks)
        self.neck = encoder.neck

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """B×3×1024×1024 normalised pixels -> B×256×64×64 features."""
        x = self.patch_embed(pixels).permute(0, 2, 3, 1) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        features: torch.Tensor = self.neck(x.permute(0, 3, 1, 2))
        return features


class _Block(nn.Module):
    """Attention and a perceptron, each added to what it reads: B×H×W×C -> B×H×W×C."""

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
        side = (len(attention.rel_pos_h) + 1) // 2  # of what attends: a window, or the image
        # side × width × side: for a query's row (column), by each of the keys' rows (columns).
        apart = torch.arange(side)[:, None] - torch.arange(side) + side - 1
        self.register_buffer("rows", attention.rel_pos_h[apart].mT.contiguous())
        self.register_buffer("columns", attention.rel_pos_w[apart].mT.contiguous())
        one = torch.eye(side).to(self.rows)
        by_row, by_column = one.repeat_interleave(side, 0), one.repeat(side, 1)
        self.register_buffer("positions", torch.cat([by_row, by_column], 1))  # side²×2·side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[1:3]
        qkv = self.qkv(self.norm1(x))
        if self.window:
            qkv = _windows(qkv, self.window, self.qkv.bias)
        attended = self._attend(qkv)
        if self.window:
            attended = _picture(attended, size)
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
    """Attention by one kernel, positions within the product; B×heads×N×width.

    The kernels want queries, keys and values of one width, a multiple of eight.
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
    """The same where a cache is worth more than a kernel.

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


def _windows(x: torch.Tensor, window: int, empty: torch.Tensor) -> torch.Tensor:
    """B×H×W×C -> B·windows × window × window × C, `empty` in the tokens beyond the image."""
    batch, height, width, channels = x.shape
    down, across = -(-height // window), -(-width // window)
    padded = empty.expand(batch, down * window, across * window, channels).clone()
    padded[:, :height, :width] = x
    windows = padded.view(batch, down, window, across, window, channels).transpose(2, 3)
    return windows.reshape(-1, window, window, channels)


def _picture(windows: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """What `_windows` took apart, put together, without the tokens beyond the image."""
    height, width = size
    window, channels = windows.shape[1], windows.shape[3]
    down, across = -(-height // window), -(-width // window)
    x = windows.view(-1, down, across, window, window, channels).transpose(2, 3)
    x = x.reshape(-1, down * window, across * window, channels)
    return x[:, :height, :width]
