"""Automask looks in a region only, and drops objects by their area."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import shapely
import shapely.geometry
from mobile_sam import SamAutomaticMaskGenerator
from mobile_sam.utils.amg import build_point_grid

from samserve import grids, tiles
from samserve.errors import InvalidField
from samserve.parameters import AutomaskParameters
from samserve.progress import Job
from samserve.region import MAX_VERTICES, Region
from samserve.segmenter import Segmenter
from samserve.serving.requests import AutomaskRequest
from tests.support.geometry import full_frame
from tests.support.sample_pictures import picture
from tests.support.segmenters import segmenter_of

COINS = picture("coins")  # 384×303
BOX = [100, 50, 300, 200]
TRIANGLE = [[0, 0], [384, 0], [0, 303]]
RING: list[list[list[float]]] = [
    [[50, 50], [350, 50], [350, 250], [50, 250], [50, 50]],
    [[100, 100], [300, 100], [300, 200], [100, 200], [100, 100]],
]
HOLED = {"type": "Polygon", "coordinates": RING}
TWO = {
    "type": "MultiPolygon",
    "coordinates": [[RING[0]], [[[360, 260], [384, 260], [384, 303], [360, 303], [360, 260]]]],
}
REGIONS: dict[str, tuple[Any, shapely.Geometry]] = {
    "a box": (BOX, shapely.box(*BOX)),
    "corners": (TRIANGLE, shapely.Polygon(TRIANGLE)),
    "a hole": (HOLED, shapely.Polygon(RING[0], [RING[1]])),
    "two parts": (TWO, shapely.geometry.shape(TWO)),
    "over the edge": ([-50, -50, 100.5, 1000], shapely.box(-50, -50, 100.5, 1000)),
}
each = pytest.mark.parametrize(("region", "area"), REGIONS.values(), ids=REGIONS.keys())


@pytest.fixture(scope="module")
def segmenter(model: Any) -> Segmenter:
    return segmenter_of(model)


@each
def test_a_region_in_every_form(region: Any, area: shapely.Geometry) -> None:
    for parsed in (
        Region.parse(region),
        Region.parse(area),  # by `__geo_interface__`
        Region.parse(Region.parse(region)),
        AutomaskRequest.parse(json.dumps({"b64img": "", "region": region}).encode()).region,
        AutomaskParameters.of({"region": region}).region,
    ):
        assert parsed is not None
        assert parsed.geometry.equals(area)


def test_its_edge_belongs_to_it() -> None:
    points = np.array([[100, 50], [300, 120], [301, 120], [200, 100]], np.float64)
    assert Region.parse(BOX).contains(points).tolist() == [True, True, False, True]
    assert Region.parse(HOLED).contains(
        np.array([[200.0, 150.0], [100, 150], [60, 60]])
    ).tolist() == [
        False,
        True,
        True,
    ]


def circle(corners: int) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return (np.stack([np.cos(angles), np.sin(angles)], 1) * 100 + 150).tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (7, "must be a box"),
        ("[1, 2, 3, 4]", "must be a box"),
        ([], "must be a box"),
        ([1, 2, 3], "must be a box"),
        ([1, 2, 3, 4, 5], "must be a box"),
        ([[1, 2, 3, 4]], "must be a box"),
        ([[1, 2, 3], [4, 5, 6], [7, 8, 9]], "must be a box"),
        ([[1, 2], [3, 4], [5]], "must be a box"),
        ([[[1, 2], [3, 4], [5, 6]]], "must be a box"),
        (["a", "b", "c", "d"], "numbers only"),
        ([1, 2, 3, None], "numbers only"),
        ([True, 2, 3, 4], "numbers only"),
        ([[0, 0], [9, False], [9, 9]], "numbers only"),
        ([1, 2, 3, 10**30], "numbers only"),
        ([1, 2, 1, 4], "empty or inverted"),
        ([5, 2, 1, 4], "empty or inverted"),
        ([1, 2, 3, 1e7], "beyond"),
        ([[1, 2], [3, 4]], "fewer than three corners"),
        ([[0, 0], [9, 9], [9, 0], [0, 9]], "not a valid polygon: Self-intersection"),
        ([[0, 0], [9, 9], [18, 18]], "not a valid polygon|no area"),
        (circle(MAX_VERTICES + 2), "at most 10000"),
        ({}, "must be a GeoJSON Polygon"),
        ({"type": "Point", "coordinates": [1, 2]}, "must be a GeoJSON Polygon"),
        ({"type": "Feature", "geometry": HOLED}, "must be a GeoJSON Polygon"),
        ({"type": "Polygon"}, "no coordinates|without rings"),
        ({"type": "Polygon", "coordinates": []}, "without rings"),
        ({"type": "Polygon", "coordinates": [1, 2, 3, 4]}, "must be"),
        ({"type": "Polygon", "coordinates": [[1, 2, 3, 4]]}, "not a list of"),
        ({"type": "MultiPolygon", "coordinates": []}, "no coordinates"),
        ({"type": "MultiPolygon", "coordinates": RING}, "must be|not a list of"),
        ({"type": "MultiPolygon", "coordinates": [[]]}, "without rings"),
        ({"type": "MultiPolygon", "coordinates": [RING, RING]}, "not a valid polygon"),
        ({"type": "MultiPolygon", "coordinates": [[circle(9000)]] * 2}, "at most 10000"),
        ({"type": "Polygon", "coordinates": {"a": 1}}, "without rings"),
        ({"type": ["Polygon"], "coordinates": RING}, "must be a GeoJSON Polygon"),
    ],
)
def test_what_is_no_region(region: Any, message: str) -> None:
    with pytest.raises(InvalidField, match=f"^region .*({message})") as refused:
        AutomaskRequest.parse(json.dumps({"b64img": "", "region": region}).encode())
    assert refused.value.field == "region"
    with pytest.raises(InvalidField, match=r"^region "):
        AutomaskParameters.of({"region": region})


def test_not_even_a_number() -> None:
    for region in ([1, 2, 3, float("nan")], [[0, 0], [9, 0], [float("inf"), 9]]):
        with pytest.raises(InvalidField, match="or NaN"):
            AutomaskParameters.of({"region": region})


@each
def test_the_references_masks_for_these_points(
    segmenter: Segmenter, model: Any, region: Any, area: shapely.Geometry
) -> None:
    side, (height, width) = 8, COINS.shape[:2]
    grid = build_point_grid(side)
    inside = [bool(area.covers(shapely.Point(x * width, y * height))) for x, y in grid]
    assert 0 < sum(inside) < side**2
    reference = SamAutomaticMaskGenerator(
        model, points_per_side=None, point_grids=[grid[inside]], stability_score_thresh=0.8
    ).generate(COINS)
    steps: list[tuple[int, int]] = []
    found = segmenter.automask(
        segmenter.embed(COINS),
        points_per_side=side,
        stability_score_thresh=0.8,
        region=region,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert steps[0] == (0, sum(inside))
    assert steps[-1] == (sum(inside),) * 2
    assert len(found) == len(reference) > 0
    for ours, expected in zip(found, reference, strict=True):
        np.testing.assert_array_equal(full_frame(ours, COINS), expected["segmentation"])
        assert ours.point_coords == expected["point_coords"]


@pytest.mark.parametrize(
    ("cut", "encoded"),
    [
        ({"crop_n_layers": 1, "crop_overlap_ratio": 0.2}, 1),  # one of four crops
        ({"tile_size": 160, "overlap": 40}, 1),  # one of six tiles
    ],
)
def test_what_lies_outside_costs_nothing(
    segmenter: Segmenter, cut: dict[str, Any], encoded: int
) -> None:
    """Crops and tiles without a point are not even encoded."""
    picture_ = segmenter.embed(COINS)
    before = segmenter.model.embeddings.found["encoder"]
    parameters = AutomaskParameters.of(
        {"points_per_side": 4, "pred_iou_thresh": 0.5, "region": [5, 5, 90, 70], **cut}
    )
    job = Job()
    found = segmenter.find_objects(picture_, parameters, job)
    assert segmenter.model.embeddings.found["encoder"] - before == encoded
    assert 0 < job.done == job.total < 16
    points = np.array([mask.unpacked().point_coords[0] for mask in found])
    assert len(points)
    assert ((points >= 5) & (points <= [90, 70])).all()


CUTS: list[dict[str, Any]] = [{}, {"crop_n_layers": 1}, {"tile_size": 128}]


@pytest.mark.parametrize("cut", CUTS)
def test_a_region_without_points(segmenter: Segmenter, cut: dict[str, Any]) -> None:
    embedded = segmenter.embed(COINS)
    for region, message in (
        ([0, 0, 1, 1], "none of the .* points of the grid lies in it.*more points_per_side"),
        ([400, 0, 500, 100], "outside the 384x303 image"),
        ([-9, -9, -1, -1], "outside the 384x303 image"),
    ):
        with pytest.raises(InvalidField, match=message) as refused:
            segmenter.automask(embedded, points_per_side=4, region=region, **cut)
        assert refused.value.field == "region"


def test_only_tiles_in_the_region_count() -> None:
    """A large picture may have more points than are allowed, if the region has fewer."""
    size, fields = (10_000, 10_000), {"points_per_side": 32, "tile_size": 512}
    count = len(tiles.tiles(10_000, 10_000, 512, 128))
    everywhere = AutomaskParameters.of(fields)
    within = AutomaskParameters.of({**fields, "region": [0, 0, 400, 400]})
    with pytest.raises(InvalidField, match=f"{count} tiles ask for {count * 1024} points"):
        grids.check_points(everywhere, size, 9 * 1024)
    grids.check_points(within, size, 4 * 1024)
    with pytest.raises(InvalidField, match="4 tiles ask for 4096 points"):
        grids.check_points(within, size, 4095)


@pytest.mark.parametrize(
    ("others", "bounds"),
    [
        ({}, ["min_area"]),
        ({}, ["max_area"]),
        ({"min_mask_region_area": 50}, ["min_area", "max_area"]),
        ({"tile_size": 256}, ["min_area", "max_area"]),
        ({"crop_n_layers": 1}, ["min_area", "max_area"]),
    ],
)
def test_objects_are_dropped_by_their_area(
    segmenter: Segmenter, others: dict[str, Any], bounds: list[str]
) -> None:
    """What is left is what the answer had, in its order; whatever else was asked for."""
    embedded = segmenter.embed(COINS)
    asked: dict[str, Any] = {"points_per_side": 4, "stability_score_thresh": 0.7, **others}
    everything = segmenter.automask(embedded, **asked)
    areas = sorted(mask.area for mask in everything)
    limits: Any = {"min_area": areas[len(areas) // 4], "max_area": areas[3 * len(areas) // 4]}
    assert limits["min_area"] < limits["max_area"]
    asked |= {name: limits[name] for name in bounds}
    kept = segmenter.automask(embedded, **asked)
    smallest = limits["min_area"] if "min_area" in bounds else 0
    largest = limits["max_area"] if "max_area" in bounds else 10**9
    expected = [mask for mask in everything if smallest <= mask.area <= largest]
    assert 0 < len(kept) == len(expected) < len(everything)
    for ours, theirs in zip(kept, expected, strict=True):
        assert (ours.box, ours.predicted_iou) == (theirs.box, theirs.predicted_iou)
        np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_no_object_is_so_small(segmenter: Segmenter) -> None:
    assert segmenter.automask(segmenter.embed(COINS), points_per_side=2, max_area=0) == []


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"min_area": -1}, "min_area"),
        ({"max_area": -1}, "max_area"),
        ({"min_area": 0.5}, "min_area"),
        ({"max_area": "9"}, "max_area"),
        ({"min_area": 9, "max_area": 8}, "max_area"),
        ({"min_area": 2**64}, "min_area"),
    ],
)
def test_areas_that_are_none(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        AutomaskRequest.parse(json.dumps({"b64img": "", **fields}).encode())
    assert refused.value.field == field
    AutomaskRequest.parse(b'{"b64img": "", "min_area": 0, "max_area": 7.0, "region": null}')
