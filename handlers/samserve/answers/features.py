"""This module turns masks into GeoJSON Features.

It decides neither which masks are kept nor their order; `masks.polygons` makes the outlines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from samserve.masks import simplify as simplification
from samserve.masks.mask import ObjectMask
from samserve.masks.polygons import VERTEX_S, mask_to_geometry

Allow = Callable[[int, float], None]
"""A function that is called before each step of an answer.

Its arguments are the number of vertices or runs that the step adds to the answer, and an estimate
of the seconds that it takes. The function raises an error if that is too much.
"""


def allow_all(vertices: int, seconds: float) -> None:
    """Allow every step, as the library does."""


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
    masks: Iterable[ObjectMask],
    sam_model: str | None,
    tolerance: float = 0,
    allow: Allow = allow_all,
) -> Iterator[dict[str, Any]]:
    """Yield a GeoJSON Feature for each mask, in the masks' order.

    An empty mask has no Feature and no `object_idx`.

    Args:
        sam_model: the model type, for the property `sam_model`.
        tolerance: pixels by which an outline may differ from its mask to have fewer vertices.
            0: exact outlines.
        allow: is asked before each step.
    """

    def allow_vertices(count: int) -> None:
        allow(count, count * VERTEX_S)

    object_idx = 0
    for mask in masks:
        geometry = mask_to_geometry(mask.mask, mask.box.origin, allow_vertices)
        if geometry is None:
            continue
        properties = {
            "object_idx": object_idx,
            "label": "object",
            "quality": float(mask.predicted_iou),
            "sam_model": sam_model,
            **mask.properties(),
        }
        if tolerance:
            allow(0, simplification.seconds(geometry))
            geometry = simplification.simplify(geometry, tolerance)
        yield {"type": "Feature", "geometry": geometry, "properties": properties}
        object_idx += 1
        del mask, geometry  # they can be large, and the next mask is made before they are replaced
