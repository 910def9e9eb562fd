"""This module simplifies outlines, so that they have fewer vertices.

It uses the Douglas-Peucker algorithm and keeps the topology: all pieces and holes stay, and every
geometry stays valid. The remaining vertices are vertices of the exact outline, so that coordinates
stay whole pixels.
"""

from __future__ import annotations

from typing import Any

import shapely
from shapely.geometry import shape


def simplify(geometry: dict[str, Any], tolerance: float) -> dict[str, Any]:
    """Return a simpler Polygon or MultiPolygon.

    No vertex of the exact outline is further than `tolerance` from the result. If the simpler
    outline would cross itself, the exact geometry is returned.

    Args:
        geometry: a valid GeoJSON geometry.
        tolerance: pixels; 0 changes nothing.
    """
    if tolerance == 0:
        return geometry
    exact = shape(geometry)
    vertices = shapely.points(shapely.get_coordinates(exact))
    # GEOS may drop the first vertex of a ring. Then other vertices end up to twice as far away.
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
