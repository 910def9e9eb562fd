"""This module converts samples of any kind to 8 bits. docs/pictures.md states the rules.

    stretch  grey, and channels that have no common unit: the smallest value becomes 0, the
             largest 255
    scale    colour: one factor for all channels, so that colours do not shift; zero stays zero,
             the largest value becomes 255
    share    samples with a fixed range: the whole range is scaled to 0..255

NaN, infinities and the value that a file declares as "no data" are no measurements: they are left
out of the range and become 0. The functions work in blocks of rows, so that they need little
memory besides the picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**20
"""The number of samples in a block; in float64 they take 8 MB."""


def stretch(
    values: NDArray[Any], no_data: float | int | None = None, *, inverted: bool = False
) -> NDArray[np.uint8]:
    """Stretch the range of all values over 0..255, to the nearest integer, ties to even.

    A picture that has one value only, and so no range, becomes 0.

    Args:
        values: the samples, in any shape.
        no_data: the value that stands for a missing measurement, or None.
        inverted: whether the largest value is the darkest.
    """
    low, high = _range(values, no_data)
    return _mapped(values, no_data, low, high, inverted=inverted)


def scale(colour: NDArray[Any], no_data: float | int | None = None) -> NDArray[np.uint8]:
    """Scale zero to the largest value of all channels to 0..255. Negative values become 0.

    Raises:
        ValueError: some values are below zero, and none is above.
    """
    low, high = _range(colour, no_data)
    if low < 0 and high <= 0:
        raise ValueError("its colours are all zero or negative")
    return _mapped(colour, no_data, 0.0, high)


def share(values: NDArray[Any], most: int) -> NDArray[np.uint8]:
    """Scale 0..`most` to 0..255."""
    return values if most == 255 else _mapped(values, None, 0.0, float(most))


def rounded_to(dtype: np.dtype[Any], text: str) -> float | int | None:
    """Return the number in `text` as a sample of this dtype represents it.

    Returns:
        None if `text` is no number, or the number is outside the range of the dtype: then no
        sample can have this value.
    """
    try:
        number = float(text)
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                value = float(dtype.type(number))
            return value if np.isfinite(value) else None
        # A 64-bit integer can have more digits than a float.
        whole = int(text) if text.strip().lstrip("+-").isdecimal() else int(number)
        limits = np.iinfo(dtype)
    except (ValueError, OverflowError):
        return None
    exact = number == whole or abs(whole) >= 2**53
    return whole if exact and limits.min <= whole <= limits.max else None


def grey_as_rgb(grey: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an H×W grey picture as H×W×3, with three equal channels."""
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def _measured(block: NDArray[Any], no_data: float | int | None) -> NDArray[np.bool_] | None:
    """Return a mask of the values that are measurements; None if all of them are."""
    valid = np.isfinite(block) if block.dtype.kind == "f" else None
    if no_data is not None:
        same = block == no_data
        if block.dtype.kind == "f":
            # Writers print a float with fewer digits than it has.
            near = 4 * float(np.finfo(block.dtype).eps) * abs(no_data)
            with np.errstate(over="ignore", invalid="ignore"):
                same |= np.abs(block - block.dtype.type(no_data)) <= near
        valid = ~same if valid is None else valid & ~same
    return valid


def _range(values: NDArray[Any], no_data: float | int | None) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    for block in _blocks(values):
        valid = _measured(block, no_data)
        measured = block if valid is None else block[valid]
        if measured.size:
            low, high = min(low, measured.min()), max(high, measured.max())
    # As floats: high - low can overflow the integers' dtype.
    return float(low), float(high)


def _mapped(
    values: NDArray[Any],
    no_data: float | int | None,
    low: float,
    high: float,
    *,
    inverted: bool = False,
) -> NDArray[np.uint8]:
    mapped = np.zeros(values.shape, np.uint8)
    if not low < high:
        return mapped
    for block, target in zip(_blocks(values), _blocks(mapped), strict=True):
        scaled = block.astype(np.float64)  # holds 32-bit integers and float32 exactly
        valid = _measured(block, no_data)
        if valid is not None:
            scaled[~valid] = high if inverted else low
        if inverted:
            np.subtract(high, scaled, out=scaled)
        else:
            scaled -= low
        if high - low > 1e300:  # 255 times that would be infinite
            scaled /= high - low
            scaled *= 255
        else:
            scaled *= 255
            scaled /= high - low
        np.rint(scaled, out=scaled)
        target[...] = scaled.clip(0, 255, out=scaled)
    return mapped


def _blocks(values: NDArray[Any]) -> Iterator[NDArray[Any]]:
    rows = max(1, _BLOCK // max(1, values[:1].size))
    for start in range(0, len(values), rows):
        yield values[start : start + rows]
