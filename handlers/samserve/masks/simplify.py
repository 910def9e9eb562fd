"""This module simplifies outlines, so that they have fewer vertices.

It uses the Douglas-Peucker algorithm and keeps the topology: all pieces and holes stay, and every
geometry stays valid. The remaining vertices are vertices of the exact outline, so that coordinates
stay whole pixels.

GEOS compares a vertex with all other rings, so its time grows with vertices times rings: noise
takes minutes. A large outline is therefore simplified in square parts of the picture, which takes
time in proportion to its vertices. It keeps a few more vertices: each edge that leads from one
part to the next one stays as it is.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely.geometry import shape

MOST_VERTICES = 100_000
"""An outline with more vertices is simplified in parts."""

MOST_VERTICES_TIMES_RINGS = 200_000_000
"""So is one with more of these. GEOS takes about 2 ns for each of them."""

PART = 64
"""Width and height of a part, in pixels."""

VERTEX_S, VERTEX_TIMES_RING_S = 6e-6, 3e-9
"""Seconds that an outline takes for each vertex, and for vertices times rings. An EPYC core."""


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
    large = _is_large(*_vertices_and_rings(geometry))
    exact = shape(geometry)
    vertices = shapely.points(shapely.get_coordinates(exact))
    # GEOS may drop the first vertex of a ring. Then other vertices end up to twice as far away.
    for allowed in (tolerance, tolerance / 2):
        simple = (
            _in_parts(exact, allowed) if large else exact.simplify(allowed, preserve_topology=True)
        )
        outline = simple.boundary
        shapely.prepare(outline)
        near = bool(shapely.dwithin(outline, vertices, tolerance).all())
        if near and simple.is_valid and simple.geom_type == exact.geom_type:
            pieces = [_rings(piece) for piece in getattr(simple, "geoms", [simple])]
            coordinates = pieces if simple.geom_type == "MultiPolygon" else pieces[0]
            return {"type": simple.geom_type, "coordinates": coordinates}
    return geometry


def seconds(geometry: dict[str, Any]) -> float:
    """Estimate the seconds that it takes to simplify a geometry."""
    vertices, rings = _vertices_and_rings(geometry)
    times_rings = 0 if _is_large(vertices, rings) else vertices * rings
    return vertices * VERTEX_S + times_rings * VERTEX_TIMES_RING_S


def _vertices_and_rings(geometry: dict[str, Any]) -> tuple[int, int]:
    coordinates = geometry["coordinates"]
    pieces = coordinates if geometry["type"] == "MultiPolygon" else [coordinates]
    return sum(len(ring) for rings in pieces for ring in rings), sum(map(len, pieces))


def _is_large(vertices: int, rings: int) -> bool:
    return vertices > MOST_VERTICES or vertices * rings > MOST_VERTICES_TIMES_RINGS


def _rings(polygon: shapely.Polygon) -> list[list[list[int]]]:
    rings = [polygon.exterior, *polygon.interiors]
    return [shapely.get_coordinates(ring).astype(int).tolist() for ring in rings]


def _in_parts(
    exact: shapely.Polygon | shapely.MultiPolygon, tolerance: float
) -> shapely.Polygon | shapely.MultiPolygon:
    """Return a simpler outline, made in square parts of the picture.

    The rings are cut into lines: each line has all its vertices in one part, and keeps its first
    and its last one. A part is convex, so what is made of its lines stays within it, and lines of
    different parts cannot cross. An edge from one part to another one stays. It takes part, as a
    line of its own, wherever it passes, so that no other line crosses it.
    """
    pieces = shapely.get_parts(exact)
    rings, piece_of_ring = shapely.get_rings(pieces, return_index=True)
    points, ring_of_point = shapely.get_coordinates(rings, return_index=True)
    part = np.floor(points / PART).astype(np.int64)
    follows = ring_of_point[1:] == ring_of_point[:-1]
    leaves = follows & (part[1:] != part[:-1]).any(axis=1)
    starts = np.concatenate([[True], ~follows | leaves])
    line_of_point, first = np.cumsum(starts) - 1, np.flatnonzero(starts)

    alone = np.diff(np.append(first, len(points))) == 1  # a line needs two vertices
    in_line = ~alone[line_of_point]
    number = np.cumsum(~alone) - 1
    lines = shapely.linestrings(points[in_line], indices=number[line_of_point[in_line]])
    edges, part_of_edge = _edges_between(points, part, np.flatnonzero(leaves))
    simple = _simplified_by_part(
        np.concatenate([lines, edges]),
        np.concatenate([part[first[~alone]], part_of_edge]),
        tolerance,
    )[: len(lines)]

    kept, line = shapely.get_coordinates(simple, return_index=True)
    line = np.concatenate([np.flatnonzero(~alone)[line], np.flatnonzero(alone)])
    order = np.argsort(line, kind="stable")
    kept = np.concatenate([kept, points[first[alone]]])[order]
    ring_of_kept = ring_of_point[first[line[order]]]
    made = _polygons(shapely.linearrings(kept, indices=ring_of_kept), piece_of_ring)
    return made[0] if exact.geom_type == "Polygon" else shapely.multipolygons(made)


def _edges_between(
    points: NDArray[np.float64], part: NDArray[np.int64], begin: NDArray[np.intp]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the edges that begin at these points, once for each part that they pass.

    An edge runs along a row or a column, so the parts that it passes stand in one, too.
    """
    ahead = part[begin + 1] - part[begin]
    passed = np.abs(ahead).max(axis=1, initial=0) + 1
    edge = np.repeat(np.arange(len(begin)), passed)
    step = np.arange(len(edge)) - np.repeat(np.cumsum(passed) - passed, passed)
    lines = shapely.linestrings(np.stack([points[begin], points[begin + 1]], axis=1))
    return lines[edge], part[begin][edge] + np.sign(ahead)[edge] * step[:, None]


def _simplified_by_part(
    lines: NDArray[Any], parts: NDArray[np.int64], tolerance: float
) -> NDArray[Any]:
    """Return the lines, each simplified together with the other lines of its part."""
    order = np.lexsort(parts.T)
    changes = (np.diff(parts[order], axis=0) != 0).any(axis=1)
    together = shapely.multilinestrings(
        lines[order], indices=np.concatenate([[0], np.cumsum(changes)])
    )
    simple = np.empty_like(lines)
    simple[order] = shapely.get_parts(shapely.simplify(together, tolerance, preserve_topology=True))
    return simple


def _polygons(rings: NDArray[Any], piece: NDArray[np.intp]) -> NDArray[Any]:
    """Return polygons of these rings. The first ring of each piece is its exterior."""
    starts = np.flatnonzero(np.diff(piece, prepend=-1))
    ends = np.append(starts[1:], len(rings))
    polygons: NDArray[Any] = shapely.polygons(rings[starts])
    for index in np.flatnonzero(ends - starts > 1):
        start, end = starts[index], ends[index]
        polygons[index] = shapely.polygons(rings[start], rings[start + 1 : end])
    return polygons
