"""This module turns samples of any kind into 8 bits. docs/pictures.md states the rules.

    stretch  grey, and channels that have no common unit: the smallest value becomes 0, the
             largest 255
    scale    colour: one factor for all its channels, so that colours do not shift; zero stays
             zero, the largest value becomes 255
    share    samples of a fixed range: the whole range becomes 0..255

Values that are no measurement (NaN, infinities, what a file declares as "no data") count for no
range and become 0. Works in blocks of rows, so that a picture costs little more memory than itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BLOCK = 2**20
"""Samples that are converted at once; in float64 they take 8 MB."""


def stretch(
    values: NDArray[Any], no_data: float | int | None = None, *, inverted: bool = False
) -> NDArray[np.uint8]:
    """Stretch the range of all values over 0..255, to the nearest integer, ties to even.

    A picture without a range, of one value only, becomes 0.

    Args:
        inverted: the largest value is the darkest.
    """
    low, high = _range(values, no_data)
    return _mapped(values, no_data, low, high, inverted=inverted)


def scale(colour: NDArray[Any], no_data: float | int | None = None) -> NDArray[np.uint8]:
    """Scale zero to the largest value of all channels to 0..255. Negative values become 0.

    Raises:
        ValueError: there are values, and none is above zero although some are below.
    """
    low, high = _range(colour, no_data)
    if low < 0 and high <= 0:
        raise ValueError("its colours are all zero or negative")
    return _mapped(colour, no_data, 0.0, high)


def share(values: NDArray[Any], most: int) -> NDArray[np.uint8]:
    """Scale 0..`most` to 0..255."""
    return values if most == 255 else _mapped(values, None, 0.0, float(most))


def rounded_to(dtype: np.dtype[Any], text: str) -> float | int | None:
    """Return the number in `text` as samples of this kind hold it; None if they cannot hold it.

    What is no number, or beyond the range of the samples, can be no sample's value.
    """
    try:
        number = float(text)
        if dtype.kind == "f":
            with np.errstate(over="ignore"):
                value = float(dtype.type(number))
            return value if np.isfinite(value) else None
        # An integer of 64 bits is more than a float holds.
        whole = int(text) if text.strip().lstrip("+-").isdecimal() else int(number)
        limits = np.iinfo(dtype)
    except (ValueError, OverflowError):
        return None
    exact = number == whole or abs(whole) >= 2**53
    return whole if exact and limits.min <= whole <= limits.max else None


def _measured(block: NDArray[Any], no_data: float | int | None) -> NDArray[np.bool_] | None:
    """Return a mask of the values that are measurements; None if all of them are."""
    valid = np.isfinite(block) if block.dtype.kind == "f" else None
    if no_data is not None:
        same = block == no_data
        if block.dtype.kind == "f":
            # The text of a float is written with fewer digits than it has.
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
    # As floats: the range of integers may be more than they hold.
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
        if high - low > 1e300:  # or 255 times that would be infinite
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
