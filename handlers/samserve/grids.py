"""This module makes the grids of points that automask prompts, and bounds their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from . import tiles
from .boxes import Box
from .errors import InvalidField
from .network.originals import build_point_grid
from .parameters import AutomaskParameters
from .region import Region


def grids_of(
    region: Region | None, parts: Sequence[Box], sides: Sequence[int], size: tuple[int, int]
) -> list[NDArray[np.float64]]:
    """Return the points that are prompted in each part of an image: N×2 XY in pixels of the part.

    Args:
        region: where points are prompted; None: everywhere.
        parts: crops or tiles, in pixels of the image.
        sides: for each part the number of points along a side.
        size: (height, width) of the image in pixels.

    Raises:
        InvalidField: the region lies outside of the image, or between the points.
    """
    reached = np.ones(len(parts), np.bool_) if region is None else region.reaches(parts)
    grids = []
    for part, side, may_have_points in zip(parts, sides, reached.tolist(), strict=True):
        if not may_have_points:
            grids.append(np.empty((0, 2)))
            continue
        points = build_point_grid(side) * [[part.width, part.height]]
        if region is not None:
            points = points[region.contains(points + part.origin)]
        grids.append(points)
    if region is not None and not any(map(len, grids)):
        height, width = size
        if not region.reaches([Box.at((0, 0), size)]).any():
            raise InvalidField(f"region: it lies outside the {width}x{height} image.", "region")
        raise InvalidField(
            f"region: none of the {sum(side**2 for side in sides)} points of the grid lies in it. "
            "Send a larger region, or more points_per_side.",
            "region",
        )
    return grids


def check_points(parameters: AutomaskParameters, size: tuple[int, int], max_points: int) -> None:
    """Check the number of points of all tiles together, before any work.

    Tiles beyond the region do not count.

    Args:
        size: (height, width) of the image in pixels.

    Raises:
        InvalidField: there are more than `max_points`, or the tiles are impossible. The message
            names the number and the limit.
    """
    height, width = size
    tiling = parameters.tiling(height, width)
    if tiling is None:
        return
    parts = tiles.tiles(width, height, tiling.tile_size, tiling.overlap)
    count = len(parts)
    if parameters.region is not None:
        count = int(np.count_nonzero(parameters.region.reaches(parts)))
    points = count * parameters.points_per_side**2
    if points > max_points:
        raise InvalidField(
            f"points_per_side: {count} tiles ask for {points} points together; "
            f"this server's limit is {max_points}.",
            "points_per_side",
        )
