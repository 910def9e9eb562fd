"""Outlines against masks drawn by hand, every small mask, and random ones.

The judges are independent of the tracer: shapely says what is valid, and `rasterise` counts
crossings at pixel centres (tests/support/geometry.py).
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samserve.masks.polygons import mask_to_geometry
from tests.support.geometry import Mask, polygons, rasterise, rings


def draw(picture: str) -> Mask:
    """Lines of `#` and `.` as a mask."""
    return np.array([[pixel == "#" for pixel in line] for line in picture.split()])


def shoelace(ring: list[list[int]]) -> float:
    return sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in itertools.pairwise(ring)) / 2


def in_reading_order(rings: list[list[list[int]]]) -> bool:
    corners = [min([y, x] for x, y in ring) for ring in rings]
    return corners == sorted(corners)


def check(mask: Mask, origin: tuple[int, int] = (0, 0)) -> None:
    """Everything that must hold of any mask's geometry."""
    geometry = mask_to_geometry(mask, origin)
    if geometry is None:
        assert not mask.any()
        return
    x0, y0 = origin
    height, width = mask.shape
    frame = rasterise(geometry, y0 + height, x0 + width)
    assert np.array_equal(frame[y0:, x0:], mask)
    assert frame.sum() == mask.sum()
    outline = shapely.from_geojson(json.dumps(geometry))
    assert shapely.is_valid(outline), shapely.is_valid_reason(outline)
    assert outline.area == mask.sum()
    assert in_reading_order([polygon[0] for polygon in polygons(geometry)])
    for polygon in polygons(geometry):
        assert [shoelace(ring) > 0 for ring in polygon] == [True] + [False] * (len(polygon) - 1)
        assert in_reading_order(polygon)
    for ring in rings(geometry):
        check_ring(ring)


def check_ring(ring: list[list[int]]) -> None:
    """Closed, of Python ints, level and upright by turns, from the topmost leftmost edge."""
    assert ring[0] == ring[-1]
    assert all(type(number) is int for point in ring for number in point)
    level = [y0 == y1 for (_, y0), (_, y1) in itertools.pairwise(ring)]
    upright = [x0 == x1 for (x0, _), (x1, _) in itertools.pairwise(ring)]
    assert level == [True, False] * (len(level) // 2)
    assert upright == [False, True] * (len(level) // 2)
    assert [ring[0][1], min(ring[0][0], ring[1][0])] == min([y, x] for x, y in ring)


DRAWN = {
    "one pixel": ("#", [[[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]]]),
    "two pixels in a row": ("##", [[[[0, 0], [2, 0], [2, 1], [0, 1], [0, 0]]]]),
    "two pixels in a column": ("# #", [[[[0, 0], [1, 0], [1, 2], [0, 2], [0, 0]]]]),
    "the full frame": ("### ###", [[[[0, 0], [3, 0], [3, 2], [0, 2], [0, 0]]]]),
    "inside the frame": (
        """
        ....
        .##.
        .#..
        ....
        """,
        [[[[1, 1], [3, 1], [3, 2], [2, 2], [2, 3], [1, 3], [1, 1]]]],
    ),
    "touching the frame on the right and below": (
        """
        ...
        .##
        ..#
        """,
        [[[[1, 1], [3, 1], [3, 3], [2, 3], [2, 2], [1, 2], [1, 1]]]],
    ),
    "a hole": (
        """
        ###
        #.#
        ###
        """,
        [
            [
                [[0, 0], [3, 0], [3, 3], [0, 3], [0, 0]],
                [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]],
            ]
        ],
    ),
    "an island in a hole": (
        """
        #####
        #...#
        #.#.#
        #...#
        #####
        """,
        [
            [
                [[0, 0], [5, 0], [5, 5], [0, 5], [0, 0]],
                [[4, 1], [1, 1], [1, 4], [4, 4], [4, 1]],
            ],
            [[[2, 2], [3, 2], [3, 3], [2, 3], [2, 2]]],
        ],
    ),
    "diagonal neighbours falling": (
        """
        #.
        .#
        """,
        [
            [[[0, 0], [1, 0], [1, 1], [0, 1], [0, 0]]],
            [[[1, 1], [2, 1], [2, 2], [1, 2], [1, 1]]],
        ],
    ),
    "diagonal neighbours rising": (
        """
        .#
        #.
        """,
        [
            [[[1, 0], [2, 0], [2, 1], [1, 1], [1, 0]]],
            [[[0, 1], [1, 1], [1, 2], [0, 2], [0, 1]]],
        ],
    ),
    "a hole touching the outside diagonally": (
        """
        ###
        #.#
        ##.
        """,
        [
            [
                [[0, 0], [3, 0], [3, 2], [2, 2], [2, 3], [0, 3], [0, 0]],
                [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]],
            ]
        ],
    ),
    "two holes touching diagonally": (
        """
        ####
        #.##
        ##.#
        ####
        """,
        [
            [
                [[0, 0], [4, 0], [4, 4], [0, 4], [0, 0]],
                [[2, 1], [1, 1], [1, 2], [2, 2], [2, 1]],
                [[3, 2], [2, 2], [2, 3], [3, 3], [3, 2]],
            ]
        ],
    ),
    "an island touching its hole's wall diagonally": (
        """
        #####
        ##..#
        #.#.#
        #...#
        #####
        """,
        [
            [
                [[0, 0], [5, 0], [5, 5], [0, 5], [0, 0]],
                [[4, 1], [2, 1], [2, 2], [1, 2], [1, 4], [4, 4], [4, 1]],
            ],
            [[[2, 2], [3, 2], [3, 3], [2, 3], [2, 2]]],
        ],
    ),
}


@pytest.mark.parametrize(("picture", "expected"), DRAWN.values(), ids=DRAWN)
def test_drawn_by_hand(picture: str, expected: list[Any]) -> None:
    mask = draw(picture)
    geometry = mask_to_geometry(mask)
    assert geometry is not None
    assert geometry["type"] == ("Polygon" if len(expected) == 1 else "MultiPolygon")
    assert polygons(geometry) == expected
    check(mask)


def test_origin_moves_every_ring() -> None:
    assert mask_to_geometry(draw("#.#"), origin=(10, 20)) == {
        "type": "MultiPolygon",
        "coordinates": [
            [[[10, 20], [11, 20], [11, 21], [10, 21], [10, 20]]],
            [[[12, 20], [13, 20], [13, 21], [12, 21], [12, 20]]],
        ],
    }


@pytest.mark.parametrize("size", [(0, 0), (0, 5), (5, 0), (1, 1), (4, 7)], ids=str)
def test_an_empty_mask_has_no_geometry(size: tuple[int, int]) -> None:
    assert mask_to_geometry(np.zeros(size, np.bool_)) is None


@pytest.mark.parametrize("size", [(8, 8), (1, 9), (9, 1), (33, 20)], ids=str)
@pytest.mark.parametrize("parity", [0, 1])
def test_a_checkerboard_is_a_polygon_for_every_pixel(size: tuple[int, int], parity: int) -> None:
    mask = np.indices(size).sum(axis=0) % 2 == parity
    geometry = mask_to_geometry(mask)
    assert geometry is not None
    assert len(rings(geometry)) == mask.sum()
    check(mask)


def test_a_framed_checkerboard_has_many_touching_holes() -> None:
    mask = np.indices((12, 15)).sum(axis=0) % 2 == 0
    for grown in (np.pad(mask, 1, constant_values=True), np.pad(mask, 2, constant_values=True)):
        check(grown)
        check(~grown)


def every_mask(height: int, width: int) -> Mask:
    """All masks of one size, N×height×width."""
    bits = height * width
    masks = (np.arange(2**bits)[:, None] >> np.arange(bits)) % 2
    return masks.reshape(-1, height, width).astype(np.bool_)


@pytest.mark.parametrize("size", [(3, 3), (2, 4), (4, 2), (1, 9), (9, 1)], ids=str)
def test_every_small_mask(size: tuple[int, int]) -> None:
    for mask in every_mask(*size):
        check(mask)


@pytest.mark.slow
def test_every_4x4_mask() -> None:
    """On one sheet, each with a gap to the next: 65,536 calls and checks would take a minute."""
    tiles = np.pad(every_mask(4, 4), ((0, 0), (0, 1), (0, 1)))
    check(tiles.reshape(256, 256, 5, 5).swapaxes(1, 2).reshape(1280, 1280))


SIZES = st.one_of(
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    st.tuples(st.just(1), st.integers(1, 40)),
    st.tuples(st.integers(1, 40), st.just(1)),
)


@given(
    mask=arrays(np.bool_, SIZES),
    origin=st.tuples(st.integers(0, 50), st.integers(0, 50)),
)
@settings(max_examples=300, deadline=None)
def test_any_mask(mask: Mask, origin: tuple[int, int]) -> None:
    check(mask, origin)


@given(
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    density=st.floats(0.02, 0.98),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_noise_of_any_density(size: tuple[int, int], density: float, seed: int) -> None:
    check(np.random.default_rng(seed).random(size) < density)


@pytest.mark.parametrize("side", [254, 255, 256, 257, 300])
def test_sides_around_the_smallest_integer_types(side: int) -> None:
    noise = np.random.default_rng(side).random((3, side)) < 0.5
    check(noise)
    check(noise.T)


def test_wider_than_16_bits() -> None:
    mask = np.zeros((2, 70_000), np.bool_)
    mask[:, [0, 65_534, 65_535, 65_536, 69_999]] = True
    mask[0, 65_535] = False
    check(mask)


def test_memory_layout_does_not_matter() -> None:
    mask = np.random.default_rng(0).random((30, 40)) < 0.6
    expected = mask_to_geometry(mask)
    wide = np.zeros((60, 120), np.bool_)
    wide[::2, ::3] = mask
    flipped = mask[::-1, ::-1].copy()[::-1, ::-1]
    for same in (np.asfortranarray(mask), wide[::2, ::3], flipped):
        assert mask_to_geometry(same) == expected


def test_the_mask_is_left_as_it_was() -> None:
    mask = draw("##. .##")
    mask.setflags(write=False)
    check(mask)


def test_an_origin_of_numpy_integers_does_not_leak() -> None:
    corner = np.array([3, 4])
    check(draw("##"), origin=(corner[0], corner[1]))
