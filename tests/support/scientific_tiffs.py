"""This module writes TIFFs with `tifffile`, and computes the pixels that they must decode to."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from samserve.pictures.decoding import decode_image

LIMIT = 1_000_000

H, W = 50, 60

Y, X = np.mgrid[:H, :W]

COLOUR = np.dstack([X * 4, Y * 5, (X + Y) * 2]).astype(np.uint8)

WIDE = (X * 60 + Y * 7 + 100).astype(np.uint16)

FLOAT = (WIDE / 7 - 40).astype(np.float32)


def written(pixels: NDArray[Any], **how: Any) -> bytes:
    """Return a TIFF that tifffile writes; grey unless `photometric` says otherwise."""
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", **how})
    return stream.getvalue()


def tag_of(data: bytes, number: int) -> tifffile.TiffTag:
    """Return a tag of the first page."""
    with tifffile.TiffFile(BytesIO(data)) as file:
        return file.pages.first.tags[number]


def stretched(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Stretch a grey picture pixel by pixel, with Python's numbers."""
    known = np.isfinite(values) if valid is None else valid & np.isfinite(values)
    low, high = float(values[known].min()), float(values[known].max())
    rows = [
        [
            round((float(v) - low) * 255 / (high - low)) if ok else 0
            for v, ok in zip(*row, strict=True)
        ]
        for row in zip(values, known, strict=True)
    ]
    return np.array(rows, np.uint8)


def scaled(colour: NDArray[Any], most: float | None = None) -> NDArray[np.uint8]:
    most = float(colour.max()) if most is None else most
    return np.array(
        [
            [[round(max(float(v), 0) * 255 / most) for v in pixel] for pixel in row]
            for row in colour
        ],
        np.uint8,
    )


def check(data: bytes, expected: NDArray[np.uint8], within: int = 0) -> None:
    difference = np.abs(decode_image(data, LIMIT).astype(int) - expected)
    assert difference.max() <= within
