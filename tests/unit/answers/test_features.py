"""Features: which masks become one, what each says, and that it is plain JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from samserve.answers.features import features
from samserve.boxes import EMPTY as NO_PIXELS
from samserve.boxes import Box
from samserve.masks.mask import AutoMask, ObjectMask, PromptMask

SQUARE = {"type": "Polygon", "coordinates": [[[3, 4], [5, 4], [5, 6], [3, 6], [3, 4]]]}
ALWAYS = {"object_idx": 0, "label": "object", "quality": 0.5, "sam_model": "vit_t"}

SIZE = (20, 30)
PLACE = Box(3, 4, 5, 6)
CORNER = Box(0, 0, 2, 2)
FULL = np.ones((2, 2), np.bool_)
EMPTY = np.zeros((2, 2), np.bool_)


def auto_mask(**changes: Any) -> AutoMask:
    fields: dict[str, Any] = {
        "mask": FULL,
        "box": PLACE,
        "image_size": SIZE,
        "predicted_iou": 0.5,
        "stability_score": 0.75,
        "point_coords": [[3.5, 4.25]],
    }
    return AutoMask(**{**fields, **changes})


@pytest.mark.parametrize(
    ("mask", "own"),
    [
        (ObjectMask(FULL, PLACE, SIZE, 0.5), {}),
        (PromptMask(FULL, PLACE, SIZE, 0.5, prompt_idx=7), {"prompt_idx": 7}),
        (
            auto_mask(),
            {
                "stability_score": 0.75,
                "area": 4,
                "bbox": [3, 4, 1, 1],
                "point_coords": [[3.5, 4.25]],
            },
        ),
    ],
    ids=["any mask", "prompt", "automask"],
)
def test_what_a_feature_says(mask: ObjectMask, own: dict[str, Any]) -> None:
    assert list(features([mask], "vit_t")) == [
        {"type": "Feature", "geometry": SQUARE, "properties": {**ALWAYS, **own}}
    ]


def test_order_and_quality_are_the_masks_own() -> None:
    masks = [PromptMask(FULL, CORNER, SIZE, iou, idx) for idx, iou in enumerate([0.25, 1.0, 0.5])]
    said = [feature["properties"] for feature in features(masks, "vit_b")]
    assert [properties["quality"] for properties in said] == [0.25, 1.0, 0.5]
    assert [properties["prompt_idx"] for properties in said] == [0, 1, 2]
    assert [properties["object_idx"] for properties in said] == [0, 1, 2]
    assert {properties["sam_model"] for properties in said} == {"vit_b"}


def test_an_empty_mask_gives_no_feature_and_takes_no_number() -> None:
    masks = [
        PromptMask(EMPTY, CORNER, SIZE, 0.9, 0),
        PromptMask(FULL, CORNER, SIZE, 0.8, 1),
        PromptMask(np.zeros((0, 0), np.bool_), NO_PIXELS, SIZE, 0.7, 2),
        PromptMask(FULL, CORNER, SIZE, 0.6, 3),
    ]
    said = [feature["properties"] for feature in features(masks, "vit_t")]
    assert [(p["object_idx"], p["prompt_idx"]) for p in said] == [(0, 1), (1, 3)]


def test_no_numpy_number_leaks() -> None:
    mask = auto_mask(
        box=Box(*np.array([3, 4, 5, 6])),
        predicted_iou=np.float32(0.5),
        stability_score=np.float32(0.75),
        point_coords=np.array([[3.5, 4.25]]),
    )
    prompt = PromptMask(FULL, PLACE, SIZE, np.float16(0.5), np.int64(0))  # type: ignore[arg-type]
    # The standard library knows none of numpy's numbers.
    expected = list(features([auto_mask(), PromptMask(FULL, PLACE, SIZE, 0.5, 0)], "vit_t"))
    assert json.loads(json.dumps(list(features([mask, prompt], "vit_t")))) == expected


@pytest.mark.parametrize(
    ("pixels", "origin", "size"),
    [
        ([(2, 5)], (5, 2), (1, 1)),
        ([(0, 0), (5, 9)], (0, 0), (6, 10)),
        ([(1, 9), (5, 3), (3, 4)], (3, 1), (5, 7)),
    ],
    ids=["one pixel", "the whole frame", "scattered"],
)
def test_another_mask_is_cropped_to_the_object(
    pixels: list[tuple[int, int]], origin: tuple[int, int], size: tuple[int, int]
) -> None:
    full = np.zeros((6, 10), np.bool_)
    for pixel in pixels:
        full[pixel] = True
    mask = auto_mask().with_mask(full, (0, 0))
    x0, y0 = origin
    assert mask.box.origin == origin
    assert np.array_equal(mask.mask, full[y0 : y0 + size[0], x0 : x0 + size[1]])
    assert mask.area == len(pixels)
    whole = ObjectMask(full, Box(0, 0, 10, 6), (6, 10), 0.5)
    assert next(features([mask], "m"))["geometry"] == next(features([whole], "m"))["geometry"]


def test_a_crop_does_not_hold_on_to_the_frame() -> None:
    mask = auto_mask().with_mask(np.ones((3, 3), np.bool_), (0, 0))
    assert mask.mask.base is None
