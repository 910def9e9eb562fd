"""Tiles cover the picture, and what a seam cuts is one object again."""

from __future__ import annotations

import itertools
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from samserve import automask, grids, tiles
from samserve.boxes import Box
from samserve.errors import InvalidField
from samserve.masks.mask import AutoMask
from samserve.pictures.picture import Picture
from samserve.progress import Job
from samserve.serving.requests import AutomaskRequest
from samserve.tiles import Piece
from tests.support.sample_pictures import base64_png
from tests.support.segmenters import segmenter_of

Mask = NDArray[np.bool_]


@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(64, 1024), st.floats(0, 0.5))
def test_tiles_cover_the_picture(width: int, height: int, tile_size: int, share: float) -> None:
    overlap = int(share * tile_size)
    windows = tiles.tiles(width, height, tile_size, overlap)
    assert len(set(windows)) == len(windows)
    columns = sorted({(x0, x1) for x0, _, x1, _ in windows})
    rows = sorted({(y0, y1) for _, y0, _, y1 in windows})
    assert len(windows) == len(columns) * len(rows)
    for sides, length in ((columns, width), (rows, height)):
        assert (sides[0][0], sides[-1][1]) == (0, length)
        assert all(end - start == min(tile_size, length) for start, end in sides)
        for (_, end), (start, _) in itertools.pairwise(sides):
            assert end - start >= overlap
        # No tile more than it takes.
        assert length <= tile_size or (len(sides) - 1) * (tile_size - overlap) < length - overlap


@pytest.mark.parametrize(
    ("box", "cut"),
    [
        ((150, 150, 160, 160), False),
        ((100, 150, 160, 160), True),
        ((150, 100, 160, 160), True),
        ((150, 150, 356, 160), True),
        ((150, 150, 160, 356), True),
        ((101, 150, 160, 160), True),
        ((102, 102, 354, 354), False),
    ],
)
def test_what_ends_at_an_inner_edge_is_a_fragment(box: Box, cut: bool) -> None:
    assert tiles.is_fragment(Box(*box), Box(100, 100, 356, 356), (500, 500)) is cut


def test_the_pictures_own_edges_cut_nothing() -> None:
    assert not tiles.is_fragment(Box(0, 0, 100, 80), Box(0, 0, 100, 80), (80, 100))


SIZE = 300  # of a picture of 2 x 2 tiles of 200, which share 100
TILES = tiles.tiles(SIZE, SIZE, 200, 100)


def seen(full: Mask, tile: Box, predicted_iou: float = 0.9) -> Piece:
    """What a tile sees of an object."""
    x0, y0, x1, y1 = tile
    left, top, width, height = cv2.boundingRect(full[y0:y1, x0:x1].view(np.uint8))
    around = Box.at((x0 + left, y0 + top), (height, width))
    mask = full[around.y0 : around.y1, around.x0 : around.x1]
    area = int(mask.sum())
    return Piece(around, np.packbits(mask, axis=1), tile, area, predicted_iou, 0.95, (1.0, 2.0))


def box(x0: int, y0: int, x1: int, y1: int) -> Mask:
    full = np.zeros((SIZE, SIZE), np.bool_)
    full[y0:y1, x0:x1] = True
    return full


def whole_of(pieces: list[Piece]) -> Mask:
    full = np.zeros((SIZE, SIZE), np.bool_)
    x0, y0, x1, y1 = tiles.bounds(pieces)
    full[y0:y1, x0:x1] = tiles.union(pieces)
    return full


def test_one_object_over_four_tiles_is_one() -> None:
    object_ = box(20, 30, 290, 280)
    [pieces] = tiles.joined([], [seen(object_, tile) for tile in TILES], 200)
    np.testing.assert_array_equal(whole_of(pieces), object_)


def test_ragged_objects_come_out_as_they_were() -> None:
    noise = np.random.default_rng(2).random((SIZE, SIZE)).astype(np.float32)
    smooth: NDArray[Any] = cv2.GaussianBlur(noise, (0, 0), 12)
    count, labels = cv2.connectedComponents((smooth > np.quantile(smooth, 0.6)).astype(np.uint8))
    objects = [labels == index for index in range(1, count)]
    cut, expected = [], []
    for object_ in objects:
        views = [seen(object_, tile) for tile in TILES if object_[_slices(tile)].any()]
        views = [v for v in views if tiles.is_fragment(v.box, v.tile, (SIZE, SIZE))]
        cut += views
        if views:
            expected.append(np.logical_or.reduce([whole_of([view]) for view in views]))
    found = [whole_of(pieces) for pieces in tiles.joined([], cut, 200)]
    # Parts that meet in no strip that two tiles see stay apart, and none is lost.
    assert len(found) >= len(expected) > 3
    np.testing.assert_array_equal(np.logical_or.reduce(found), np.logical_or.reduce(expected))
    for mask in found:
        assert sum(bool((mask & object_).any()) for object_ in objects) == 1


def _slices(tile: Box) -> tuple[slice, slice]:
    x0, y0, x1, y1 = tile
    return slice(y0, y1), slice(x0, x1)


def test_a_fragment_of_what_another_tile_saw_whole_goes() -> None:
    object_ = box(110, 20, 215, 90)  # whole in the right tile, cut by the left one's edge
    left, right, *_ = TILES
    assert tiles.joined([seen(object_, right)], [seen(object_, left)], 200) == []


def test_a_part_of_what_is_whole_goes_but_not_what_is_around_it() -> None:
    inner, outer = box(120, 20, 210, 90), box(20, 10, 280, 180)
    left, right, *_ = TILES
    fragments = [seen(outer, left), seen(outer, right), seen(inner, left)]
    [pieces] = tiles.joined([seen(inner, right)], fragments, 200)
    np.testing.assert_array_equal(whole_of(pieces), outer)


def test_neighbours_stay_apart() -> None:
    one, other = box(20, 20, 280, 60), box(20, 60, 280, 100)
    left, right, *_ = TILES
    views = [seen(object_, tile) for object_ in (one, other) for tile in (left, right)]
    found = [whole_of(pieces) for pieces in tiles.joined([], views, 200)]
    assert len(found) == 2
    for mask, object_ in zip(found, (one, other), strict=True):
        np.testing.assert_array_equal(mask, object_)


def test_an_object_that_only_one_tile_found_stays_as_it_was_seen() -> None:
    left, *_ = TILES
    fragment = seen(box(20, 20, 280, 60), left)
    assert tiles.joined([], [fragment], 200) == [[fragment]]


def test_what_spans_too_many_tiles_is_left_out() -> None:
    object_ = box(0, 0, SIZE, SIZE)
    views = [seen(object_, tile) for tile in TILES]
    assert tiles.joined([], views, 200)
    assert tiles.joined([], views, 74) == []


def automask_of(full: Mask) -> AutoMask:
    left, top, width, height = cv2.boundingRect(full.view(np.uint8))
    box = Box.at((left, top), (height, width))
    mask = full[top : top + height, left : left + width]
    return AutoMask(mask, box, (SIZE, SIZE), 0.9, 0.95, [[0, 0]])


def test_the_same_object_with_a_stray_pixel_is_the_same() -> None:
    object_, stray, inner, apart = (
        box(20, 20, 80, 80),
        box(20, 20, 80, 80),
        box(30, 30, 70, 70),
        box(120, 20, 180, 80),
    )
    stray[200, 290] = True
    masks = [automask_of(full) for full in (object_, stray, inner, apart)]
    assert tiles.distinct(masks, 0.7) == [masks[0], masks[2], masks[3]]
    assert tiles.distinct([], 0.7) == []


def field_of_objects(width: int, height: int, seed: int) -> tuple[NDArray[np.uint8], list[Mask]]:
    """Coloured ellipses on a soft, grainy ground, none touching another; and their masks."""
    generator = np.random.default_rng(seed)
    ground = cv2.GaussianBlur(generator.random((height, width)).astype(np.float32), (0, 0), 40)
    ground = 90 + 30 * (ground - ground.mean()) / ground.std()
    pixels = np.repeat(ground[:, :, None], 3, axis=2)
    objects: list[Mask] = []
    taken: NDArray[np.uint8] = np.zeros((height, width), np.uint8)
    for _ in range(600):
        axes = tuple(int(side) for side in generator.integers(22, 60, 2))
        centre = int(generator.integers(0, width)), int(generator.integers(0, height))
        drawn = np.zeros((height, width), np.uint8)
        cv2.ellipse(drawn, centre, axes, float(generator.random() * 180), 0, 360, 1, -1)
        room: NDArray[Any] = cv2.dilate(drawn, np.ones((15, 15), np.uint8))
        inside = max(axes) + 8 < min(centre[0], centre[1], width - centre[0], height - centre[1])
        if inside and not (room & taken).any():
            taken |= drawn
            colour = generator.integers(0, 2, 3) * 150 + generator.integers(20, 80, 3)
            pixels[drawn > 0] = colour
            objects.append(drawn > 0)
    pixels += generator.normal(0, 4, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8), objects


def found_in(model: Any, pixels: NDArray[np.uint8], **fields: Any) -> list[Mask]:
    segmenter, sent = segmenter_of(model), Picture(base64_png(pixels), 10**8)
    request = AutomaskRequest.model_validate({"b64img": "", **fields})
    job = Job()
    image = segmenter.model.embeddings.of_picture(sent).image
    full = []
    for packed in automask.generate(segmenter.model, image, lambda: sent.pixels, request, job):
        found = packed.unpacked()
        mask = np.zeros(pixels.shape[:2], np.bool_)
        (left, top), (height, width) = found.box.origin, found.mask.shape
        mask[top : top + height, left : left + width] = found.mask
        full.append(mask)
    assert job.done == job.total > 0
    return full


def iou(one: Mask, other: Mask) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


def test_every_object_is_found_once(model: Any) -> None:
    """Real tiles of a real network, seams and corners in the midst of objects."""
    width, height = 800, 640
    pixels, objects = field_of_objects(width, height, seed=5)
    windows = tiles.tiles(width, height, 384, 96)
    seams = {x for _, _, x, _ in windows} | {x for x, _, _, _ in windows}
    on_seams = [o for o in objects if any(o[:, x].any() for x in seams if 0 < x < width)]
    assert len(objects) > 20
    assert len(on_seams) >= 10
    masks = found_in(model, pixels, tile_size=384, points_per_side=10)
    times = [sum(iou(object_, mask) >= 0.9 for mask in masks) for object_ in objects]
    assert times.count(1) >= 0.98 * len(objects)
    assert max(times) == 1


def test_one_tile_is_the_whole_picture(model: Any) -> None:
    pixels, _ = field_of_objects(300, 200, seed=1)
    tiled = found_in(model, pixels, tile_size=1024, points_per_side=4)
    plain = found_in(model, pixels, tile_size=0, points_per_side=4)
    assert len(tiled) == len(plain) > 0
    for mask in plain:
        assert any((mask == other).all() for other in tiled)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"tile_size": 63}, "tile_size"),
        ({"tile_size": 512, "crop_n_layers": 1}, "tile_size"),
        ({"tile_size": 512, "overlap": 257}, "overlap"),
    ],
)
def test_impossible_tiles(fields: dict[str, Any], field: str) -> None:
    request = AutomaskRequest.model_validate({"b64img": "", **fields})
    with pytest.raises(InvalidField) as refused:
        grids.check_points(request, (1000, 1000), 10**6)
    assert refused.value.field == field


def test_work_is_counted_over_all_tiles() -> None:
    request = AutomaskRequest.model_validate({"b64img": "", "tile_size": 512})
    count = len(tiles.tiles(1400, 1000, 512, 128))
    grids.check_points(request, (1000, 1400), count * 1024)
    with pytest.raises(InvalidField, match=f"{count} tiles ask for {count * 1024} points"):
        grids.check_points(request, (1000, 1400), count * 1024 - 1)


@pytest.mark.parametrize(
    ("size", "fields", "tiled"),
    [
        ((4096, 4096), {}, False),
        ((100, 4097), {}, True),
        ((4097, 100), {}, True),
        ((9000, 9000), {"tile_size": 0}, False),
        ((9000, 9000), {"crop_n_layers": 1}, False),
        ((100, 100), {"tile_size": 64}, True),
    ],
)
def test_when_a_picture_is_tiled(
    size: tuple[int, int], fields: dict[str, Any], tiled: bool
) -> None:
    request = AutomaskRequest.model_validate({"b64img": "", **fields})
    assert (request.tiling(*size) is not None) is tiled
