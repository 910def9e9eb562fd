"""Fewer vertices, the same pieces and holes, valid, and no further off than allowed."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import shapely
from numpy.typing import NDArray
from shapely.geometry import shape

from samserve.masks import simplify as module
from samserve.masks.polygons import mask_to_geometry
from samserve.masks.simplify import simplify


@pytest.fixture(params=["whole", "in parts"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small outlines are simplified as large ones, too."""
    if request.param == "in parts":
        monkeypatch.setattr(module, "MOST_VERTICES", 0)
        monkeypatch.setattr(module, "PART", 16)


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


@pytest.mark.usefixtures("way")
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


@pytest.mark.usefixtures("way")
def test_nothing_vanishes() -> None:
    """A hole and a piece smaller than the tolerance."""
    mask = np.ones((30, 30), np.bool_)
    mask[10, 10] = False
    mask[20:25, 20:25] = False
    mask[22, 22] = True
    simple = simplify(mask_to_geometry(mask) or {}, 100)
    assert shape(simple).is_valid
    assert list(map(len, pieces(simple))) == [3, 1]


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("seed", range(50))
def test_pieces_that_touch_at_corners(seed: int) -> None:
    mask = np.random.default_rng(seed).random((12, 12)) < 0.5
    exact = mask_to_geometry(mask) or {}
    for tolerance in (0.3, 1, 3):
        assert shape(simplify(exact, tolerance)).is_valid


def noise(side: int, share: float = 0.5) -> NDArray[np.bool_]:
    return np.asarray(np.random.default_rng(1).random((side, side)) < share)


def pattern(name: str, side: int = 70) -> NDArray[np.bool_]:
    y, x = np.indices((side, side))
    masks = {
        "noise": noise(side),
        "holes": (y % 2 == 0) | (x % 2 == 0),
        "comb": (x % 2 == 0) | (y == 0),
        "frame": (np.minimum(y, x) < 2) | (np.maximum(y, x) >= side - 2),
        "checkerboard": (y + x) % 2 == 0,
    }
    return np.asarray(masks[name])


@pytest.mark.parametrize("tolerance", [0.3, 1, 30, 1000])
@pytest.mark.parametrize("name", ["noise", "holes", "comb", "frame", "checkerboard"])
def test_large_outlines(name: str, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part, and every line in it, is put together again."""
    exact = mask_to_geometry(pattern(name), (1003, 77)) or {}
    monkeypatch.setattr(module, "MOST_VERTICES", 0)
    simple = simplify(exact, tolerance)
    assert shape(simple).is_valid
    assert list(map(len, pieces(simple))) == list(map(len, pieces(exact)))
    assert vertices(simple) <= vertices(exact)
    if name == "noise" and tolerance >= 1:
        assert vertices(simple) < 0.7 * vertices(exact)
    distance = shape(simple).boundary.hausdorff_distance(shape(exact).boundary)
    assert distance <= tolerance + 1e-9


def test_no_outline_is_given_to_geos_with_many_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take time in proportion to vertices times rings: a minute for this mask."""
    most = 0
    whole = shapely.simplify

    def watched(lines: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal most
        counts = shapely.get_num_coordinates(lines)
        most = max(most, int(np.max(counts)))
        return whole(lines, *args, **kwargs)

    monkeypatch.setattr(shapely, "simplify", watched)
    exact = mask_to_geometry(noise(500)) or {}
    assert vertices(simplify(exact, 1)) < 0.8 * vertices(exact)
    assert 0 < most < 8 * module.PART**2


def test_usual_outlines_are_simplified_as_a_whole() -> None:
    exact = blobs(3, 0.4)
    whole = shape(exact).simplify(1)
    assert shape(simplify(exact, 1)).equals_exact(whole)
