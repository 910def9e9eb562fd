"""A mask's shapes: at the size of the image, as a polygon, and with other pixels."""

from __future__ import annotations

import numpy as np
from shapely.geometry import Polygon, box

from samserve.boxes import EMPTY, Box
from samserve.masks.mask import AutoMask, ObjectMask

RING = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]], np.bool_)
MASK = ObjectMask(RING, Box(4, 2, 7, 5), (10, 12), 0.9)


def test_at_the_size_of_the_image() -> None:
    expected = np.zeros((10, 12), np.bool_)
    expected[2:5, 4:7] = RING
    np.testing.assert_array_equal(MASK.array, expected)
    assert MASK.area == 8


def test_as_a_polygon_with_its_hole() -> None:
    expected = box(4, 2, 7, 5).difference(box(5, 3, 6, 4))
    assert MASK.polygon.equals(expected)
    assert MASK.polygon.area == MASK.area


def test_an_empty_mask() -> None:
    empty = ObjectMask(np.zeros((0, 0), np.bool_), EMPTY, (10, 12), 0.1)
    assert (empty.area, empty.array.shape) == (0, (10, 12))
    assert not empty.array.any()
    assert empty.polygon == Polygon()


def test_other_pixels_make_another_box() -> None:
    mask = AutoMask(RING, MASK.box, MASK.image_size, 0.9, 0.95, [[5.0, 3.0]])
    pixels = np.zeros((6, 8), np.bool_)
    pixels[1:3, 2:7] = True
    other = mask.with_mask(pixels, (3, 1))
    assert other.box == Box(5, 2, 10, 4)
    assert other.mask.all()
    assert other.point_coords == mask.point_coords
    assert mask.with_mask(np.zeros((6, 8), np.bool_), (3, 1)).area == 0
