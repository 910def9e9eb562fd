"""This module turns a GeoJSON geometry in pixels into the mask that it outlines.

`masks.polygons` does the opposite. The server's outlines run along pixel edges, so that the mask
is exact, with all holes and islands. Other outlines give the pixels whose centres lie inside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samserve.boxes import EMPTY, Box


def rings_of(geometry: Mapping[str, Any]) -> Iterator[Any]:
    """Yield every ring of a Polygon or MultiPolygon, exteriors and holes."""
    coordinates = geometry["coordinates"]
    for polygon in [coordinates] if geometry["type"] == "Polygon" else coordinates:
        yield from polygon


def bounds_of(geometry: Mapping[str, Any]) -> Box:
    """Return the smallest box of whole pixels that holds the geometry."""
    corners = [np.asarray(ring, np.float64) for ring in rings_of(geometry)]
    if not corners:
        return EMPTY
    points = np.concatenate(corners)
    x0, y0 = np.floor(points.min(axis=0)).tolist()
    x1, y1 = np.ceil(points.max(axis=0)).tolist()
    return Box(int(x0), int(y0), int(x1), int(y1))


def area_of(geometry: Mapping[str, Any]) -> int:
    """Return the area in whole pixels. Rings that are wound the other way are holes."""
    doubled = 0.0
    for ring in rings_of(geometry):
        x, y = np.asarray(ring, np.float64).T
        doubled += float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
    return math.floor(abs(doubled) / 2 + 0.5)


def mask_of(geometry: Mapping[str, Any], box: Box) -> NDArray[np.bool_]:
    """Return the pixels of a box whose centres lie inside the geometry, by the even-odd rule.

    Each edge changes inside to outside, or outside to inside, for all pixels at its right. So the
    edges are counted at the first pixel at their right, in each row that they cross, and summed
    from left to right.

    Returns:
        h×w bool, where h and w are those of `box`.
    """
    height, width = box.size
    if not box.area:
        return np.zeros((height, width), np.bool_)
    starts, ends = [], []
    for ring in rings_of(geometry):
        points = np.asarray(ring, np.float64)
        starts.append(points[:-1])
        ends.append(points[1:])
    rows, columns = _crossings(np.concatenate(starts), np.concatenate(ends), box)
    odd = np.zeros(height * (width + 1), np.bool_)
    np.logical_xor.at(odd, rows * (width + 1) + columns, True)
    inside: NDArray[np.bool_] = np.logical_xor.accumulate(
        odd.reshape(height, width + 1)[:, :width], axis=1
    )
    return inside


def _crossings(
    starts: NDArray[np.float64], ends: NDArray[np.float64], box: Box
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return (row, column) of the first pixel at the right of each edge, in each row it crosses.

    An edge crosses a row if it crosses the line through the centres of the row's pixels.
    """
    starts, ends = starts - box.origin, ends - box.origin
    rising = starts[:, 1] > ends[:, 1]
    upper = np.where(rising[:, None], ends, starts)
    lower = np.where(rising[:, None], starts, ends)
    first = np.clip(np.ceil(upper[:, 1] - 0.5), 0, box.height).astype(np.intp)
    behind = np.clip(np.ceil(lower[:, 1] - 0.5), 0, box.height).astype(np.intp)
    counts = behind - first
    edges = np.repeat(np.arange(len(counts)), counts)
    rows = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[edges]
    upper, lower = upper[edges], lower[edges]
    share = (rows + 0.5 - upper[:, 1]) / (lower[:, 1] - upper[:, 1])
    x = upper[:, 0] + share * (lower[:, 0] - upper[:, 0])
    columns = np.clip(np.ceil(x - 0.5), 0, box.width).astype(np.intp)
    return rows, columns
