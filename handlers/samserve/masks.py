"""Mask logits, from the network's 256×256 to the image's own size, and how stable they are.

The full-size mask is the reference's: two bilinear steps (`Sam.postprocess_masks`), then the
threshold. Decides nothing: which masks are worth it is `automask`'s.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from .encoder import Embedding

MASK_THRESHOLD = 0.0
"""A pixel is of the object where its logit is above this (`Sam.mask_threshold`)."""

NETWORK_SIDE = 1024
"""Pixels of the network's input, both ways; 256×256 logits cover it."""

Logits = NDArray[np.float32]


def upscale(low_res_mask: Logits, embedding: Embedding) -> Logits:
    """256×256 logits of the padded input frame -> the image's H×W pixels, padding removed."""
    in_h, in_w = embedding.input_size
    height, width = embedding.original_size
    padded = cv2.resize(low_res_mask, (NETWORK_SIDE, NETWORK_SIDE))
    return np.asarray(cv2.resize(padded[:in_h, :in_w], (width, height)), np.float32)


def stability_score(logits: Logits, offset: float) -> np.float32:
    """IoU of the masks cut at `offset` above and below the threshold; NaN where both are empty.

    segment-anything's `calculate_stability_score`, single precision and all: a score on the
    threshold falls on the same side.
    """
    intersection = np.count_nonzero(logits > MASK_THRESHOLD + offset)
    union = np.count_nonzero(logits > MASK_THRESHOLD - offset)
    return np.float32(intersection) / np.float32(union) if union else np.float32(math.nan)


class StabilityBound:
    """What the stability score at full size can be at most, told from 256×256 logits.

    Interpolation gives each pixel a mean of logits in a window of 3×3: it can only be above
    a threshold where the window's largest is, and must be where its smallest is.
    """

    def __init__(self, embedding: Embedding) -> None:
        (in_h, in_w), (height, width) = embedding.input_size, embedding.original_size
        self._rows = _pixels_by_window(in_h, height)
        self._columns = _pixels_by_window(in_w, width)

    def __call__(self, low_res_mask: Logits, offset: float) -> float:
        """The bound; infinite where it says nothing."""
        largest = cv2.dilate(low_res_mask, _WINDOW)
        smallest = cv2.erode(low_res_mask, _WINDOW)
        intersection = self._pixels(largest > MASK_THRESHOLD + offset)
        union = self._pixels(smallest > MASK_THRESHOLD - offset)
        return intersection / union if union else math.inf

    def _pixels(self, windows: NDArray[np.bool_]) -> float:
        """How many of the image's pixels have their window among these, 256×256."""
        return float(self._rows @ windows.astype(np.float32) @ self._columns)


_WINDOW = np.ones((3, 3), np.uint8)


def _pixels_by_window(input_size: int, size: int) -> NDArray[np.float32]:
    """For each of 256 positions, how many of `size` pixels have their window around it.

    float32 holds these counts exactly, and products of two up to 2^24; beyond that the bound is
    off by less than one part in ten million.
    """
    # As the two bilinear steps compute where they read: half a pixel is the centre of one.
    in_input = (np.arange(size) + 0.5) * (input_size / size) - 0.5
    lower = np.clip(np.floor(in_input), 0, input_size - 1)
    in_low_res = (lower + 0.5) / 4 - 0.5
    # Two neighbours in the input frame read two or three in a row of the 256.
    first = np.clip(np.floor(in_low_res), 0, 255).astype(int)
    centre = np.minimum(first + 1, 255)
    return np.bincount(centre, minlength=256).astype(np.float32)
