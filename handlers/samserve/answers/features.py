"""Masks to GeoJSON Features.

A mask travels as the crop around its object. Decides neither which masks are worth keeping nor
their order, and leaves outlines to `polygons`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from samserve.masks.polygons import mask_to_geometry
from samserve.masks.simplify import simplify


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """One object.

    Attributes:
        mask: h×w bool, the crop to the object's box.
        origin: (x0, y0), the image pixel at the crop's top left.
        predicted_iou: the model's own estimate of how good this very mask is.
    """

    mask: NDArray[np.bool_]
    origin: tuple[int, int]
    predicted_iou: float

    @property
    def area(self) -> int:
        """Pixels of the object."""
        return int(np.count_nonzero(self.mask))

    @property
    def bbox(self) -> tuple[int, int, int, int]:
        """(x, y, w, h) as segment-anything gives it, from first pixel to last."""
        (left, top), (height, width) = self.origin, self.mask.shape
        return left, top, max(0, width - 1), max(0, height - 1)

    def properties(self) -> dict[str, Any]:
        """What its Feature tells beyond what every Feature does."""
        return {}


@dataclass(frozen=True, eq=False)
class PromptMask(ObjectMask):
    """An answer to the prompt at place `prompt_idx` of the request."""

    prompt_idx: int

    def properties(self) -> dict[str, Any]:
        return {"prompt_idx": int(self.prompt_idx)}


@dataclass(frozen=True, eq=False)
class AutoMask(ObjectMask):
    """An object that automask found.

    Attributes:
        stability_score: IoU of the mask with itself at a higher and a lower threshold.
        point_coords: [[x, y]], the grid point that found it.
    """

    stability_score: float
    point_coords: list[list[float]]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY, both ends included."""
        left, top, width, height = self.bbox
        return left, top, left + width, top + height

    def reshaped(self, mask: NDArray[np.bool_], origin: tuple[int, int]) -> AutoMask:
        """The same object with another mask, whose first pixel is at `origin`, (x0, y0)."""
        cut, (left, top) = _crop(mask)
        return replace(self, mask=cut, origin=(origin[0] + left, origin[1] + top))

    def properties(self) -> dict[str, Any]:
        return {
            "stability_score": float(self.stability_score),
            "area": self.area,
            "bbox": [int(side) for side in self.bbox],
            "point_coords": [[float(x), float(y)] for x, y in self.point_coords],
        }


def features(
    masks: Sequence[ObjectMask], sam_model: str, tolerance: float = 0
) -> list[dict[str, Any]]:
    """A Feature for each mask, in their order; an empty mask gives none and takes no number.

    Args:
        tolerance: pixels by which outlines may differ from the masks, so as to be simpler.
    """
    found: list[dict[str, Any]] = []
    for mask in masks:
        geometry = mask_to_geometry(mask.mask, mask.origin)
        if geometry is None:
            continue
        properties = {
            "object_idx": len(found),
            "label": "object",
            "quality": float(mask.predicted_iou),
            "sam_model": sam_model,
            **mask.properties(),
        }
        geometry = simplify(geometry, tolerance)
        found.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return found


def _crop(full: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """The box around a mask's pixels, and the (x0, y0) it starts at."""
    rows = np.flatnonzero(full.any(axis=1))
    if not len(rows):
        return np.zeros((0, 0), np.bool_), (0, 0)
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(full[y0:y1].any(axis=0))
    x0, x1 = int(columns[0]), int(columns[-1]) + 1
    # A view would keep the whole frame in memory for as long as the crop lives.
    return full[y0:y1, x0:x1].copy(), (x0, y0)
