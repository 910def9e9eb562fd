"""Fewer vertices, the same pieces and holes, valid, and no further off than allowed."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from shapely.geometry import shape

from samserve.masks.polygons import mask_to_geometry
from samserve.masks.simplify import simplify


def blobs(seed: int, share: float) -> dict[str, Any]:
    """Outlines of smooth noise: pieces, holes, and pieces in holes."""
    noise = np.random.default_rng(seed).random((80, 120)).astype(np.float32)
    smooth: NDArray[Any] = cv2.GaussianBlur(noise, (0, 0), 3)
    geometry = mask_to_geometry(smooth > np.quantile(smooth, 1 - share))
    assert geometry is not None
    return geometry


def vertices(geometry: dict[str, Any]) -> int:
    return sum(len(ring) for piece in pieces(geometry) for ring in piece)


def pieces(geometry: dict[str, Any]) -> list[Any]:
    coordinates = geometry["coordinates"]
    return [coordinates] if geometry["type"] == "Polygon" else coordinates


@pytest.mark.parametrize("tolerance", [0.5, 1, 2, 5])
@pytest.mark.parametrize("seed", range(10))
def test_simpler_but_the_same(seed: int, tolerance: float) -> None:
    exact = blobs(seed, 0.2 + 0.06 * seed)
    simple = simplify(exact, tolerance)
    assert shape(simple).is_valid
    assert vertices(simple) < vertices(exact)
    assert simple["type"] == exact["type"]
    assert list(map(len, pieces(simple))) == list(map(len, pieces(exact)))
    outline = shape(exact).boundary
    assert shape(simple).boundary.hausdorff_distance(outline) <= tolerance + 1e-9
    for before, after in zip(pieces(exact), pieces(simple), strict=True):
        for exact_ring, ring in zip(before, after, strict=True):
            assert ring[0] == ring[-1]
            assert len(ring) >= 4
            assert all(isinstance(number, int) for vertex in ring for number in vertex)
            assert {tuple(v) for v in ring} <= {tuple(v) for v in exact_ring}


def test_nothing_to_simplify() -> None:
    exact = blobs(3, 0.4)
    assert simplify(exact, 0) is exact


def test_nothing_vanishes() -> None:
    """A hole and a piece smaller than the tolerance."""
    mask = np.ones((30, 30), np.bool_)
    mask[10, 10] = False
    mask[20:25, 20:25] = False
    mask[22, 22] = True
    simple = simplify(mask_to_geometry(mask) or {}, 100)
    assert shape(simple).is_valid
    assert list(map(len, pieces(simple))) == [3, 1]


@pytest.mark.parametrize("seed", range(50))
def test_pieces_that_touch_at_corners(seed: int) -> None:
    mask = np.random.default_rng(seed).random((12, 12)) < 0.5
    exact = mask_to_geometry(mask) or {}
    for tolerance in (0.3, 1, 3):
        assert shape(simplify(exact, tolerance)).is_valid
