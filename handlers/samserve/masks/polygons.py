"""This module turns one boolean mask into one exact GeoJSON geometry.

The rings run along pixel edges. So rasterising the geometry gives the mask again, and its area is
the number of pixels. Nothing is simplified, smoothed or dropped.

Why not `rasterio.features.shapes`, whose rings are the same: it takes 50 ms for a smooth object
across 1800×1200 pixels, and this module takes 12 ms. It also brings 100 MB of GDAL, and it changes
warning filters, which fails under threads.

How it works: a ring turns at lattice points and runs straight between two turns. So the turns in
each row of the lattice are pairs, the two ends of horizontal edges; the turns in each column are
pairs as well. To walk a ring, follow a row to the other end of the edge, then a column, then a
row again. Two turns share a lattice point only where two mask pixels meet diagonally; `_crossed`
decides how to go on there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_PIXELS_AT_ONCE = 2**18  # so many fit into the processor's cache, with what is computed of them

Indices = NDArray[np.intp]
Labels = NDArray[np.int32]
Ring = list[list[int]]

VERTEX_S = 3e-6
"""Seconds that a vertex takes to be counted, found, ordered and written. An EPYC core."""


def mask_to_geometry(
    mask: NDArray[np.bool_],
    origin: tuple[int, int] = (0, 0),
    allow: Callable[[int], None] = lambda vertices: None,
) -> dict[str, Any] | None:
    """Return the outline of a mask as a GeoJSON Polygon or MultiPolygon; None if it is empty.

    Pixels that share an edge belong to one piece. Pixels that share only a corner belong to two
    pieces that touch there. Pieces are sorted by their topmost, then leftmost corner, and so are
    the holes of a piece. Every geometry is valid by the OGC's rules.

    Exteriors have a positive shoelace area and holes a negative one. With y pointing up, exteriors
    are counter-clockwise as RFC 7946 wants; on a screen, where y points down, they are clockwise.
    Each ring starts at its topmost, then leftmost edge, and ends where it starts.

    Args:
        mask: H×W bool, True on the object; usually the crop around the object.
        origin: (x0, y0), the image's pixel at the mask's top left.
        allow: is called with the number of vertices when they are counted. They take most of the
            time, and come next, unless it raises an error.

    Returns:
        Coordinates are Python integers in pixels of the image. The origin is the top-left corner of
        the first pixel; x points right, y points down.
    """
    pieces = _pieces(mask, origin, allow)
    if not pieces:
        return None
    if len(pieces) == 1:
        return {"type": "Polygon", "coordinates": pieces[0]}
    return {"type": "MultiPolygon", "coordinates": pieces}


def _pieces(
    mask: NDArray[np.bool_], origin: tuple[int, int], allow: Callable[[int], None]
) -> list[list[Ring]]:
    """Return the rings of every piece, the exterior first."""
    # A border of background gives every pixel of the mask four neighbours.
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = mask
    y, x = _turning_points(padded)
    if not len(y):
        return []
    allow(len(y))

    # The piece of each of the four pixels around a turning point; 0 is the background.
    labels = cv2.connectedComponents(padded, connectivity=4)[1].astype(np.int32, copy=False)
    nw, ne, sw, se = labels[y, x], labels[y, x + 1], labels[y + 1, x], labels[y + 1, x + 1]
    diagonal = ((nw > 0) == (se > 0)) & ((ne > 0) == (sw > 0))

    # Lattice points to turns: a diagonal has two turns, the first one with the edge to the left.
    turn = np.repeat(np.arange(len(y)), 1 + diagonal)
    crossed = (np.cumsum(1 + diagonal) - 2)[diagonal & _crossed(nw, ne, sw, se)]
    points = np.stack((x[turn] + origin[0], y[turn] + origin[1]), axis=1)
    other_end = _column_partners(x[turn], crossed)

    # Edge i connects turn 2i (left) and turn 2i + 1 (right). The walk has the mask on its right.
    left = turn[0::2]
    eastward = se[left] > 0
    piece = np.where(eastward, se[left], ne[left])
    start = 2 * np.arange(len(left)) + ~eastward
    end = start ^ 1
    edges, firsts = _walk(other_end[end] // 2)

    vertices = points[np.stack((start, end), axis=1)[edges]].reshape(-1, 2).tolist()
    stops = [2 * first for first in firsts[1:]] + [len(vertices)]
    pieces: dict[int, list[Ring]] = {}
    begin = 0
    for stop, label in zip(stops, piece[edges[firsts]].tolist(), strict=True):
        # The exterior comes first: its top-left corner precedes the corners of its holes.
        pieces.setdefault(label, []).append([*vertices[begin:stop], vertices[begin]])
        begin = stop
    return list(pieces.values())


def _turning_points(padded: NDArray[np.uint8]) -> tuple[Indices, Indices]:
    """Return (y, x) of the lattice points where a ring turns, row by row.

    The point (y, x) is the corner that the padded pixels (y, x) and (y + 1, x + 1) share.
    """
    width = padded.shape[1] - 1
    rows = max(1, _PIXELS_AT_ONCE // width)
    found = []
    for first in range(0, len(padded) - 1, rows):
        band = padded[first : first + rows + 1]
        upright = band[:, 1:] != band[:, :-1]
        level = band[1:] != band[:-1]
        turns = (upright[1:] | upright[:-1]) & (level[:, 1:] | level[:, :-1])
        # One flat search is several times faster than np.nonzero in two dimensions.
        found.append(np.flatnonzero(turns) + first * width)
    y, x = np.divmod(np.concatenate(found), width)
    return y, x


def _crossed(nw: Labels, ne: Labels, sw: Labels, se: Labels) -> NDArray[np.bool_]:
    """Return, at a diagonal, whether the turn with the left edge continues on the lower edge.

    Two pieces that meet at a corner must separate there: each turn goes around its mask pixel.
    If both pixels belong to one piece, such a ring would touch itself and be invalid. Then each
    turn goes around a background pixel, which makes a hole that touches another ring in a point.
    """
    one_piece_falling: NDArray[np.bool_] = (nw > 0) & (nw == se)
    # Background pixels all have the label 0, so different labels mean mask pixels.
    two_pieces_rising: NDArray[np.bool_] = ne != sw
    return one_piece_falling | two_pieces_rising


def _column_partners(x: Indices, crossed: Indices) -> Indices:
    """Return, for each turn, the turn at the other end of its vertical edge.

    Args:
        x: the column of each turn; the turns are sorted row by row.
        crossed: the first turns of the diagonals whose second turn has the upper edge.
    """
    above = np.arange(len(x))
    above[crossed] += 1
    above[crossed + 1] -= 1
    # The narrowest type: NumPy sorts integers of up to 16 bits by radix, which is faster.
    by_column = above[np.argsort(x.astype(np.min_scalar_type(x.max())), kind="stable")]
    partner = np.empty_like(by_column)
    partner[by_column] = by_column.reshape(-1, 2)[:, ::-1].ravel()
    return partner


def _walk(following: Indices) -> tuple[Indices, list[int]]:
    """Return the edges ring by ring, and the index at which each ring begins."""
    ahead, walked = following.tolist(), -1
    edges: list[int] = []
    firsts: list[int] = []
    for first in range(len(ahead)):
        if ahead[first] == walked:
            continue
        firsts.append(len(edges))
        edge = first
        while ahead[edge] != walked:
            edges.append(edge)
            ahead[edge], edge = walked, ahead[edge]
    return np.array(edges), firsts
