"""This module has the batched products of the exact decoder: one per head, for all prompts."""

from __future__ import annotations

import torch


def times(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return b×H×T×m @ H×m×n. The right side is the same for all prompts: one product per head.

    With one prompt, nothing is moved in memory, before or after.
    """
    return _unfolded(torch.bmm(_folded(left), right), len(left))


def plus_times(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return b×H×T×n + `times`. With one prompt, the result is in the memory of `sums`."""
    return _unfolded(_folded(sums).baddbmm_(_folded(left), right), len(left))


def _folded(by_prompt: torch.Tensor) -> torch.Tensor:
    """b×H×T×m -> H×bT×m."""
    return by_prompt.transpose(0, 1).flatten(1, 2)


def _unfolded(by_head: torch.Tensor, prompts: int) -> torch.Tensor:
    """H×bT×n -> b×H×T×n."""
    heads, _, n = by_head.shape
    return by_head.view(heads, prompts, -1, n).transpose(0, 1).contiguous()
