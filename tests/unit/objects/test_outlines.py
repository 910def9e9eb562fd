"""Outlines become the masks that they were made of: every small mask, and random ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samserve.boxes import EMPTY, Box
from samserve.masks.polygons import mask_to_geometry
from samserve.objects.outlines import area_of, bounds_of, mask_of
from tests.support.geometry import Mask


def check(mask: Mask, origin: tuple[int, int] = (0, 0)) -> None:
    """Mask to outline to mask to outline changes nothing."""
    geometry = mask_to_geometry(mask, origin)
    if geometry is None:
        return
    frame = Box.at(origin, mask.shape)
    assert np.array_equal(mask_of(geometry, frame), mask)
    assert area_of(geometry) == mask.sum()
    box = bounds_of(geometry)
    rows, columns = np.nonzero(mask)
    tight = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert box == tuple(int(side) for side in tight + np.array(origin * 2))
    crop = mask_of(geometry, box)
    assert np.array_equal(crop, mask[box.slices(frame)])
    assert mask_to_geometry(crop, box.origin) == geometry


def test_every_mask_of_up_to_nine_pixels() -> None:
    for height, width in itertools.product((1, 2, 3), repeat=2):
        for bits in range(2 ** (height * width)):
            pixels = [bits >> index & 1 == 1 for index in range(height * width)]
            check(np.array(pixels).reshape(height, width))


@given(
    arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=24)),
    st.tuples(st.integers(0, 5000), st.integers(0, 5000)),
)
@settings(deadline=None)
def test_random_masks_anywhere(mask: Mask, origin: tuple[int, int]) -> None:
    check(mask, origin)


@pytest.mark.parametrize(
    "mask",
    [
        pytest.param(["###", "#.#", "###"], id="a hole"),
        pytest.param(["#.", ".#"], id="two pieces touch at a corner"),
        pytest.param(["###", "#.#", "##."], id="a hole touches the outside at a corner"),
        pytest.param(["#####", "#...#", "#.#.#", "#...#", "#####"], id="an island in a hole"),
        pytest.param(["####", "#.##", "##.#", "####"], id="two holes touch at a corner"),
    ],
)
def test_holes_and_touching_corners(mask: list[str]) -> None:
    check(np.array([[pixel == "#" for pixel in line] for line in mask]), (7, 3))


def test_no_geometry_has_no_pixels() -> None:
    nothing = {"type": "Polygon", "coordinates": []}
    assert bounds_of(nothing) == EMPTY
    assert mask_of(nothing, EMPTY).shape == (0, 0)
    assert area_of(nothing) == 0


@given(st.lists(st.tuples(st.floats(0, 20), st.floats(0, 20)), min_size=3, max_size=8, unique=True))
@settings(deadline=None)
def test_any_other_outline_gives_the_pixels_whose_centres_lie_inside(
    corners: list[tuple[float, float]],
) -> None:
    hull = shapely.MultiPoint(corners).convex_hull
    if hull.geom_type != "Polygon" or hull.area < 1e-6:
        return
    mask = mask_of(hull.__geo_interface__, Box(0, 0, 20, 20))
    y, x = np.mgrid[:20, :20] + 0.5
    near = shapely.distance(hull.boundary, shapely.points(x, y)) < 1e-9
    inside = shapely.contains_xy(hull, x, y)
    assert np.array_equal(mask[~near], inside[~near])


def test_a_box_smaller_than_the_outline_gets_its_part() -> None:
    square = mask_to_geometry(np.ones((10, 10), np.bool_))
    assert square is not None
    assert mask_of(square, Box(5, 5, 15, 15)).sum() == 25
    assert mask_of(square, Box(3, 4, 6, 7)).all()
    assert not mask_of(square, Box(20, 20, 22, 22)).any()
