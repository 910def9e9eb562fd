"""GeoJSON and cropped masks are turned back into pixels, without the code under test."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samserve.masks.mask import ObjectMask

Mask = NDArray[np.bool_]


def full_frame(mask: ObjectMask, image: NDArray[np.uint8]) -> Mask:
    """Return a mask's crop in its place in the image, independently of `ObjectMask.array`."""
    frame = np.zeros(image.shape[:2], np.bool_)
    (x0, y0), (height, width) = mask.box.origin, mask.mask.shape
    frame[y0 : y0 + height, x0 : x0 + width] = mask.mask
    return frame


def polygons(geometry: dict[str, Any]) -> list[Any]:
    """Return the rings of each polygon of a Polygon or MultiPolygon."""
    coordinates = geometry["coordinates"]
    return [coordinates] if geometry["type"] == "Polygon" else list(coordinates)


def rings(geometry: dict[str, Any]) -> list[Any]:
    """Return all rings, exteriors and holes."""
    return [ring for polygon in polygons(geometry) for ring in polygon]


def rasterise(geometry: dict[str, Any] | None, height: int, width: int) -> Mask:
    """Return the pixels inside the outline, H×W bool, by the even-odd rule.

    A pixel is inside if a ray from its centre to the left crosses an odd number of edges.
    """
    crossings = np.zeros((height, width + 1), np.int64)
    for ring in rings(geometry) if geometry else []:
        for (x0, y0), (x1, y1) in itertools.pairwise(ring):
            if x0 == x1:
                crossings[min(y0, y1) : max(y0, y1), x0] += 1
    return (np.cumsum(crossings, axis=1)[:, :-1] % 2).astype(np.bool_)


def same_mask(one: Mask, other: Mask) -> bool:
    """Return whether two masks differ in at most two pixels and two in a million more.

    Rounding at the threshold depends on the machine and on the other prompts of the batch.
    """
    return bool(np.count_nonzero(one != other) <= 2 + 2e-6 * one.size)
