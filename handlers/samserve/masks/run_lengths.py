"""This module computes COCO's run lengths of a mask from the crop around its object."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def edges_of(mask: NDArray[np.bool_], origin: tuple[int, int], height: int) -> NDArray[np.intp]:
    """Return where the runs of the mask's pixels begin and end, by turns.

    COCO counts pixels column by column, from the image's first pixel.

    Args:
        mask: h×w bool, the crop around the object.
        origin: (x0, y0), the image's pixel at the crop's top left.
        height: the image's height in pixels.
    """
    left, top = origin
    rows, columns = mask.shape
    padded = np.zeros((columns, rows + 2), np.int8)
    padded[:, 1:-1] = mask.T
    steps: NDArray[np.int8] = np.diff(padded, axis=1)
    above = (left + np.arange(columns)) * height + top
    starts, ends = (above[column] + row for column, row in map(np.nonzero, (steps > 0, steps < 0)))
    # A run that ends at the bottom continues at the top of the next column.
    apart = ends[:-1] != starts[1:]
    return np.stack([starts[np.r_[True, apart]], ends[np.r_[apart, True]]], axis=1).ravel()


def counts_of(edges: NDArray[np.intp], size: tuple[int, int]) -> list[int]:
    """Return the lengths of the runs, background first, of an image of this (height, width)."""
    height, width = size
    counts: list[int] = np.trim_zeros(
        np.diff(edges, prepend=0, append=height * width), "b"
    ).tolist()
    return counts
