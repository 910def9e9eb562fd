"""One boolean mask to one GeoJSON geometry, exactly.

Rings run along pixel edges, so rasterising the geometry gives the mask back and its area is the
pixel count. Does not simplify, smooth or drop small pieces, and knows nothing of Features.

Written here rather than taken from `rasterio.features.shapes`, whose rings are the same: that
takes 50 ms for a smooth object across 1800×1200 pixels where this takes 12, brings 100 MB of GDAL,
and hides its own warnings in a way that fails under threads.

How: a ring turns at lattice points, and between two turns it runs straight. So every row of the
lattice holds its turns in pairs, the ends of horizontal edges, and so does every column. Going
along a row, then along a column, then along a row … walks one ring. Only where two mask pixels
meet diagonally do two turns share a lattice point, and there is a choice to make: see `_crossed`.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Indices = NDArray[np.intp]
Labels = NDArray[np.int32]
Ring = list[list[int]]


def mask_to_geometry(
    mask: NDArray[np.bool_], origin: tuple[int, int] = (0, 0)
) -> dict[str, Any] | None:
    """The mask's outline as a GeoJSON Polygon or MultiPolygon; None if no pixel is set.

    Pixels that share an edge are one piece; those that share only a corner are two, touching
    there. Pieces come in reading order of their topmost, then leftmost corner, and so do the holes
    of a piece. Every geometry is valid in the OGC's sense.

    Exteriors have a positive shoelace area and holes a negative one. That is RFC 7946's
    counter-clockwise exterior for whoever reads the numbers with y up, and clockwise on a screen,
    where y is down. Each ring starts on its topmost, then leftmost edge, and closes.

    Args:
        mask: H×W, True on the object; usually the crop around it.
        origin: (x0, y0), the image pixel at the mask's top left.

    Returns:
        Coordinates are Python ints: pixels from the top-left corner of the image's first pixel,
        x right, y down.
    """
    pieces = _pieces(mask, origin)
    if not pieces:
        return None
    if len(pieces) == 1:
        return {"type": "Polygon", "coordinates": pieces[0]}
    return {"type": "MultiPolygon", "coordinates": pieces}


def _pieces(mask: NDArray[np.bool_], origin: tuple[int, int]) -> list[list[Ring]]:
    """Every piece as its rings, the exterior first."""
    # A border of background, so that no pixel of the mask lacks a neighbour.
    padded = np.zeros((mask.shape[0] + 2, mask.shape[1] + 2), np.uint8)
    padded[1:-1, 1:-1] = mask
    y, x = _turning_points(padded)
    if not len(y):
        return []

    # The piece (0: background) of the four pixels around each turning point.
    labels = cv2.connectedComponents(padded, connectivity=4)[1].astype(np.int32, copy=False)
    nw, ne, sw, se = labels[y, x], labels[y, x + 1], labels[y + 1, x], labels[y + 1, x + 1]
    diagonal = ((nw > 0) == (se > 0)) & ((ne > 0) == (sw > 0))

    # From lattice points to turns: two at a diagonal, the first with the edge to the left.
    turn = np.repeat(np.arange(len(y)), 1 + diagonal)
    crossed = (np.cumsum(1 + diagonal) - 2)[diagonal & _crossed(nw, ne, sw, se)]
    points = np.stack((x[turn] + origin[0], y[turn] + origin[1]), axis=1)
    other_end = _column_partners(x[turn], crossed)

    # Edge i joins turns 2i and 2i + 1, left and right. It is walked with the mask on the right.
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
        # The exterior comes first by itself: its top-left corner precedes those of its holes.
        pieces.setdefault(label, []).append([*vertices[begin:stop], vertices[begin]])
        begin = stop
    return list(pieces.values())


def _turning_points(padded: NDArray[np.uint8]) -> tuple[Indices, Indices]:
    """(y, x) of the lattice points where a ring turns, in reading order.

    Point (y, x) is the corner that padded pixels (y, x) and (y + 1, x + 1) share.
    """
    upright = padded[:, 1:] != padded[:, :-1]
    level = padded[1:] != padded[:-1]
    turns = (upright[1:] | upright[:-1]) & (level[:, 1:] | level[:, :-1])
    # One flat search is several times faster than np.nonzero in two dimensions.
    y, x = np.divmod(np.flatnonzero(turns), turns.shape[1])
    return y, x


def _crossed(nw: Labels, ne: Labels, sw: Labels, se: Labels) -> NDArray[np.bool_]:
    """At a diagonal: whether the turn with the left edge takes the lower one, not the upper.

    Two pieces that meet at a corner must part there, each turn going round its own mask pixel.
    But if both pixels belong to one piece, which goes round some other way, such a ring would
    touch itself and be invalid: there each turn goes round a background pixel, which makes a hole
    that touches another ring at a point.
    """
    one_piece_falling: NDArray[np.bool_] = (nw > 0) & (nw == se)
    # Two background pixels have the same label, 0, so labels differ only if these are the mask's.
    two_pieces_rising: NDArray[np.bool_] = ne != sw
    return one_piece_falling | two_pieces_rising


def _column_partners(x: Indices, crossed: Indices) -> Indices:
    """For each turn, the one at the other end of its vertical edge.

    Args:
        x: the column of each turn; turns in reading order.
        crossed: the first turns of those diagonals where the second has the upper edge.
    """
    above = np.arange(len(x))
    above[crossed] += 1
    above[crossed + 1] -= 1
    # The narrowest type, because numpy sorts 16 bits and fewer by radix.
    by_column = above[np.argsort(x.astype(np.min_scalar_type(x.max())), kind="stable")]
    partner = np.empty_like(by_column)
    partner[by_column] = by_column.reshape(-1, 2)[:, ::-1].ravel()
    return partner


def _walk(following: Indices) -> tuple[Indices, list[int]]:
    """The edges ring by ring, and where in that list each ring begins."""
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
