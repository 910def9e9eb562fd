"""This module draws objects: as a label image, and in colours over their picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from samserve.boxes import Box

from .frame import Frame
from .segmented import SegmentedObject

if TYPE_CHECKING:
    from PIL.Image import Image

_OPACITY = 0.45
_ROWS = 512
"""Rows that are drawn at once, so that a large picture needs little memory besides itself."""


def labels(
    objects: Sequence[SegmentedObject], size: tuple[int, int]
) -> NDArray[np.uint16] | NDArray[np.uint32]:
    """Return H×W: i + 1 on object i, 0 on the background; the smaller object lies on top.

    Of two objects with the same area, the later one lies on top.
    """
    few = len(objects) <= np.iinfo(np.uint16).max
    image = np.zeros(size, np.uint16 if few else np.uint32)
    frame = Box.at((0, 0), size)
    for index in sorted(range(len(objects)), key=lambda index: -objects[index].area):
        found = objects[index]
        image[found.box.slices(frame)][found.mask] = index + 1
    return image


def label_image(image: NDArray[np.uint16] | NDArray[np.uint32]) -> Image:
    """Return a label image as a PIL image with 16 or 32 bits a pixel."""
    from PIL import Image

    return Image.fromarray(image if image.dtype == np.uint16 else image.astype(np.int32))


def label_format(image: NDArray[Any], path: str | os.PathLike[str]) -> str:
    """Return the format of a file of labels by its name's ending.

    Raises:
        ValueError: the format loses labels.
    """
    ending = Path(path).suffix.lower()
    if ending in (".tif", ".tiff"):
        return "TIFF"
    if ending != ".png":
        raise ValueError(
            f"Write labels to a .png or a .tif file: {ending or path} would lose them."
        )
    if image.dtype != np.uint16:
        raise ValueError("PNG holds 65,535 labels at most: write more to a .tif file.")
    return "PNG"


def overlay(objects: Sequence[SegmentedObject], frame: Frame) -> Image:
    """Return the picture with each object in a colour of its own, and with outlines."""
    from PIL import Image

    drawn = np.array(frame.pixels())
    which = labels(objects, frame.size)
    palette = colours(len(objects) + 1)
    for start in range(0, len(drawn), _ROWS):
        rows = slice(start, start + _ROWS)
        part, inside = drawn[rows], which[rows] > 0
        shade = palette[which[rows][inside]]
        part[inside] = (part[inside] * (1 - _OPACITY) + shade * _OPACITY).astype(np.uint8)
        edges = inside & _borders(which, start, min(start + _ROWS, len(drawn)))
        part[edges] = palette[which[rows][edges]]
    return Image.fromarray(drawn)


def _borders(which: NDArray[Any], start: int, stop: int) -> NDArray[np.bool_]:
    """Return, for some rows, the pixels with a neighbour of another label."""
    padded = np.pad(which[max(start - 1, 0) : stop + 1], 1, mode="edge")
    first = 1 if start == 0 else 2
    middle = slice(first, first + stop - start)
    here = padded[middle, 1:-1]
    above = padded[first - 1 : first - 1 + len(here), 1:-1]
    below = padded[first + 1 : first + 1 + len(here), 1:-1]
    differs: NDArray[np.bool_] = (here != above) | (here != below)
    differs |= (here != padded[middle, :-2]) | (here != padded[middle, 2:])
    return differs


def colours(count: int) -> NDArray[np.uint8]:
    """Return N×3 RGB: bright colours, of which neighbours in the list differ much."""
    # Steps of the golden ratio around the circle of hues never come close to a recent one.
    hue = (np.arange(count) * 0.61803398875 % 1.0)[:, None] * 6
    channel = np.abs((hue + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1
    rgb: NDArray[np.uint8] = (255 * (0.1 + 0.9 * np.clip(channel, 0, 1))).astype(np.uint8)
    return rgb
