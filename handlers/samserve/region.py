"""A Region is the part of a picture in which automask looks for objects.

Its points are prompted, and no others. A mask that such a point gives is kept whole, wherever it
reaches: so it is the mask that the network sees, and the answer is that of segment-anything for
these points (`point_grids`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

# NumPy and shapely are imported where they are used: the gateway has this module for its field
# names, and starts without them.
if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from shapely.geometry.base import BaseGeometry

MAX_VERTICES = 10_000
"""Most vertices of a region."""

MAX_COORDINATE = 1e6

SCHEMA: dict[str, Any] = {
    "anyOf": [
        {
            "type": "array",
            "description": "A box, `[x1, y1, x2, y2]`.",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
        },
        {
            "type": "array",
            "description": "The corners of a polygon, `[[x, y], …]`.",
            "items": {
                "type": "array",
                "items": {"type": "number"},
                "minItems": 2,
                "maxItems": 2,
            },
            "minItems": 3,
            "maxItems": MAX_VERTICES,
        },
        {
            "type": "object",
            "description": "A GeoJSON Polygon or MultiPolygon, which may have holes.",
            "required": ["type", "coordinates"],
            "properties": {
                "type": {"enum": ["Polygon", "MultiPolygon"]},
                "coordinates": {"type": "array"},
            },
        },
        {"type": "null"},
    ]
}
"""The JSON schema of a region in a request."""


class Region:
    """A part of a picture.

    Args:
        geometry: a valid shapely Polygon or MultiPolygon, in pixels of the picture.
    """

    def __init__(self, geometry: BaseGeometry) -> None:
        self.geometry = geometry

    @classmethod
    def parse(cls, value: Any) -> Region:
        """Return the region that a box, a list of corners, or a GeoJSON geometry describes.

        Args:
            value: `[x1, y1, x2, y2]`, `[[x, y], …]`, a GeoJSON Polygon or MultiPolygon, or an
                object with one as its `__geo_interface__`, as shapely's and geopandas' have.

        Raises:
            ValueError: it is none of these, or has no area. The message follows the field's name.
        """
        import shapely

        if isinstance(value, cls):
            return value
        value = getattr(value, "__geo_interface__", value)
        if isinstance(value, Mapping):
            polygons = _of_geojson(value)
        else:
            numbers = _numbers(value)
            polygons = [[_corners(numbers) if numbers.ndim == 1 else numbers]]
        vertices = sum(len(ring) for rings in polygons for ring in rings)
        if vertices > MAX_VERTICES:
            raise ValueError(f"has {vertices} vertices; at most {MAX_VERTICES}")
        parts = [shapely.Polygon(rings[0], rings[1:]) for rings in polygons]
        geometry = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
        if not geometry.is_valid:
            reason = shapely.is_valid_reason(geometry)
            raise ValueError(f"is not a valid polygon: {reason}")
        if not geometry.area > 0:
            raise ValueError("has no area")
        shapely.prepare(geometry)
        return cls(geometry)

    def contains(self, points: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which of these N×2 XY lie in the region or on its edge."""
        import numpy as np
        import shapely

        return np.asarray(shapely.intersects_xy(self.geometry, points[:, 0], points[:, 1]))

    def reaches(self, parts: Sequence[tuple[int, int, int, int]]) -> NDArray[np.bool_]:
        """Return to which of these parts of the picture, XYXY, the region reaches."""
        import numpy as np
        import shapely

        boxes = shapely.box(*np.array(parts, np.float64).reshape(-1, 4).T)
        return np.asarray(shapely.intersects(self.geometry, boxes))


def _of_geojson(value: Mapping[str, Any]) -> list[list[NDArray[np.float64]]]:
    """Return the rings of each polygon of a GeoJSON geometry."""
    kind = value.get("type")
    if kind not in ("Polygon", "MultiPolygon"):
        raise ValueError("must be a GeoJSON Polygon or MultiPolygon if it is an object")
    coordinates: Any = value.get("coordinates")
    polygons: Any = [coordinates] if kind == "Polygon" else coordinates
    if not _is_list(polygons) or not polygons:
        raise ValueError("has no coordinates")
    if any(not _is_list(rings) or not rings for rings in polygons):
        raise ValueError("has a polygon without rings")
    return [[_ring(ring) for ring in rings] for rings in polygons]


def _corners(box: NDArray[np.float64]) -> NDArray[np.float64]:
    import numpy as np

    x1, y1, x2, y2 = box
    if not (x1 < x2 and y1 < y2):
        raise ValueError(f"is empty or inverted: needs x1 < x2 and y1 < y2, got {box.tolist()}")
    return np.array([(x1, y1), (x2, y1), (x2, y2), (x1, y2)])


def _ring(value: Any) -> NDArray[np.float64]:
    ring = _numbers(value)
    if ring.ndim != 2:
        raise ValueError("has a ring that is not a list of [x, y]")
    return ring


def _numbers(value: Any) -> NDArray[np.float64]:
    """Return four numbers, or at least three rows of two."""
    import numpy as np

    wanted = "must be a box [x1, y1, x2, y2], a list of [x, y], or a GeoJSON Polygon"
    if not _is_list(value):
        raise ValueError(wanted)
    if len(value) > MAX_VERTICES + 1:  # GeoJSON repeats the first corner
        raise ValueError(f"has {len(value)} vertices; at most {MAX_VERTICES}")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as exc:  # lists of different lengths
        raise ValueError(wanted) from exc
    if array.dtype.kind not in "iuf" or _has_bool(value):
        raise ValueError(f"{wanted}, of numbers only")
    if array.shape != (4,) and (array.ndim != 2 or array.shape[1] != 2):
        raise ValueError(wanted)
    if array.ndim == 2 and len(array) < 3:
        raise ValueError("has fewer than three corners")
    numbers = array.astype(np.float64)
    if not (np.abs(numbers) <= MAX_COORDINATE).all():
        raise ValueError(f"holds a number beyond ±{MAX_COORDINATE:g}, or NaN")
    return numbers


def _has_bool(value: Any) -> bool:
    """Return whether there is a bool in a list of numbers or of rows: NumPy makes it a number."""
    if hasattr(value, "dtype"):  # an array, whose type was looked at
        return False
    rows = (row if _is_list(row) else (row,) for row in value)
    return any(isinstance(number, bool) for row in rows for number in row)


def _is_list(value: Any) -> bool:
    """Return whether a value is a list, a tuple or an array."""
    return isinstance(value, list | tuple) or hasattr(value, "__array__")
