"""This module cuts an image's tokens into square windows for attention, and joins them again."""

from __future__ import annotations

import torch


def to_windows(x: torch.Tensor, window: int, empty: torch.Tensor) -> torch.Tensor:
    """Return B·windows × window × window × C of B×H×W×C.

    Args:
        empty: C, the token of the padding, where the windows reach beyond the image.
    """
    batch, height, width, channels = x.shape
    down, across = -(-height // window), -(-width // window)
    if (down * window, across * window) != (height, width):
        padded = empty.expand(batch, down * window, across * window, channels).clone()
        padded[:, :height, :width] = x
        x = padded
    windows = x.reshape(batch, down, window, across, window, channels).transpose(2, 3)
    return windows.reshape(-1, window, window, channels)


def from_windows(windows: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Invert `to_windows`: put the windows together, without the tokens of the padding.

    Args:
        size: (H, W) of the image in tokens.
    """
    height, width = size
    window, channels = windows.shape[1], windows.shape[3]
    down, across = -(-height // window), -(-width // window)
    x = windows.view(-1, down, across, window, window, channels).transpose(2, 3)
    x = x.reshape(-1, down * window, across * window, channels)
    return x[:, :height, :width]
