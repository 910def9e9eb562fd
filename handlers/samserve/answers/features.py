"""This module turns masks into GeoJSON Features.

It decides neither which masks are kept nor their order; `masks.polygons` makes the outlines.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from samserve.masks.mask import ObjectMask
from samserve.masks.polygons import mask_to_geometry
from samserve.masks.simplify import simplify


def to_geojson(
    masks: Sequence[ObjectMask], *, sam_model: str | None = None, simplify: float = 0
) -> list[dict[str, Any]]:
    """Return a GeoJSON Feature for each mask, as the server's answers have them.

    Coordinates are pixels of the picture: origin at the top left, x right, y down. An empty mask
    has no Feature.

    Args:
        sam_model: the model type, for the property `sam_model`.
        simplify: pixels by which an outline may differ from its mask to have fewer vertices.
            0: exact outlines.
    """
    return list(features(masks, sam_model, simplify))


def features(
    masks: Iterable[ObjectMask], sam_model: str | None, tolerance: float = 0
) -> Iterator[dict[str, Any]]:
    """Yield a GeoJSON Feature for each mask, in the masks' order.

    An empty mask has no Feature and no `object_idx`.

    Args:
        sam_model: the model type, for the property `sam_model`.
        tolerance: pixels by which an outline may differ from its mask to have fewer vertices.
            0: exact outlines.
    """
    object_idx = 0
    for mask in masks:
        geometry = mask_to_geometry(mask.mask, mask.box.origin)
        if geometry is None:
            continue
        properties = {
            "object_idx": object_idx,
            "label": "object",
            "quality": float(mask.predicted_iou),
            "sam_model": sam_model,
            **mask.properties(),
        }
        geometry = simplify(geometry, tolerance)
        yield {"type": "Feature", "geometry": geometry, "properties": properties}
        object_idx += 1
        del mask, geometry  # they can be large, and the next mask is made before they are replaced
