"""Fewer vertices for whoever does not need every pixel's edge.

Douglas-Peucker that keeps the topology: pieces, holes and their nesting stay, and every geometry
stays valid. What remains are vertices of the exact outline, so coordinates stay whole pixels.
"""

from __future__ import annotations

from typing import Any

import shapely
from shapely.geometry import shape


def simplify(geometry: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """A Polygon or MultiPolygon, no vertex of the given one further than `tolerance` from it.

    A geometry that cannot be simplified so without crossing itself is given back as it came.

    Args:
        geometry: GeoJSON, valid.
        tolerance: pixels; 0 changes nothing.
    """
    if tolerance == 0:
        return geometry
    exact = shape(geometry)
    vertices = shapely.points(shapely.get_coordinates(exact))
    # Where GEOS leaves out a ring's first vertex, too, others get up to twice as far away.
    for allowed in (tolerance, tolerance / 2):
        simple = exact.simplify(allowed, preserve_topology=True)
        outline = simple.boundary
        shapely.prepare(outline)
        near = bool(shapely.dwithin(outline, vertices, tolerance).all())
        if near and simple.is_valid and simple.geom_type == exact.geom_type:
            pieces = [_rings(piece) for piece in getattr(simple, "geoms", [simple])]
            coordinates = pieces if simple.geom_type == "MultiPolygon" else pieces[0]
            return {"type": simple.geom_type, "coordinates": coordinates}
    return geometry


def _rings(polygon: shapely.Polygon) -> list[list[list[int]]]:
    rings = [polygon.exterior, *polygon.interiors]
    return [shapely.get_coordinates(ring).astype(int).tolist() for ring in rings]
