"""Boxes and the ways in which others write rectangles."""

from __future__ import annotations

import numpy as np
import pytest

from samserve.boxes import EMPTY, Box

BOX = Box(3, 4, 10, 6)  # 7 wide, 2 high


def test_the_conventions() -> None:
    assert (BOX.width, BOX.height, BOX.area) == (7, 2, 14)
    assert BOX.size == (2, 7)
    assert BOX.origin == (3, 4)
    assert BOX.inclusive == (3, 4, 9, 5)
    assert BOX.xywh == (3, 4, 6, 1)
    assert Box.at((3, 4), (2, 7)) == BOX


def test_a_single_pixel_and_no_pixel() -> None:
    assert Box(5, 6, 6, 7).xywh == (5, 6, 0, 0)
    assert (EMPTY.area, EMPTY.size, EMPTY.xywh) == (0, (0, 0), (0, 0, 0, 0))


def test_moving() -> None:
    assert BOX.shifted(-3, 10) == Box(0, 14, 7, 16)


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (Box(0, 0, 100, 100), BOX),
        (Box(5, 5, 7, 9), Box(5, 5, 7, 6)),
        (Box(10, 4, 12, 6), None),  # they touch
        (Box(3, 6, 10, 8), None),
        (Box(20, 20, 30, 30), None),
    ],
)
def test_shared_pixels(other: Box, shared: Box | None) -> None:
    assert BOX.shared(other) == other.shared(BOX) == shared


def test_the_box_around_boxes() -> None:
    around = Box.around([BOX, Box(0, 5, 4, 20)])
    assert around == Box(0, 4, 10, 20)
    assert all(type(side) is int for side in around)


def test_slices_cut_an_array() -> None:
    image = np.arange(200).reshape(10, 20)
    outer = Box(2, 3, 12, 8)
    part = image[outer.slices(Box.at((0, 0), image.shape))]
    np.testing.assert_array_equal(part[BOX.slices(outer)], image[4:6, 3:10])
