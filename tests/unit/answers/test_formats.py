"""The forms of an answer: which is chosen, and that each says the same masks."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco

from samserve.answers.formats import FORMATS, Content, chosen
from samserve.boxes import Box
from samserve.errors import NotAcceptable
from samserve.masks.compact import PackedMask
from samserve.masks.mask import AutoMask, ObjectMask, PromptMask

SIZE = (40, 60)
BY_NAME = {form.name: form for form in FORMATS}


@pytest.mark.parametrize("name", BY_NAME)
def test_by_name_whatever_is_accepted(name: str) -> None:
    for accept in (None, "text/html", *(form.media_type for form in FORMATS)):
        assert chosen(name, accept).name == name


@pytest.mark.parametrize("name", ["", "geojson", "Features", "coco"])
def test_an_unknown_name(name: str) -> None:
    with pytest.raises(NotAcceptable, match="there are features, feature_collection, coco_rle"):
        chosen(name, "application/json")


GEO = "application/geo+json"
COCO = "application/vnd.coco-rle+json"


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        (None, "features"),
        ("", "features"),
        ("*/*", "features"),
        ("application/json", "features"),
        ("application/*", "features"),
        ("text/html", "features"),
        (GEO, "feature_collection"),
        ("Application/GEO+json", "feature_collection"),
        (COCO, "coco_rle"),
        (f"{GEO}, application/json", "features"),
        (f"{GEO}, application/json;q=0.9", "feature_collection"),
        (f"application/json ; q=0.5, {GEO} ; q=0.7", "feature_collection"),
        (f"{GEO}, */*;q=0.1", "feature_collection"),
        (f"{GEO};q=0.1, */*", "features"),
        (f"{GEO};q=0", "features"),
        (f"{GEO};q=nonsense", "features"),
        (f"{GEO};charset=utf-8", "feature_collection"),
        (f"{GEO};q=0.2, {COCO};q=0.3", "coco_rle"),
        (",;,;q=,", "features"),
    ],
)
def test_by_accept(accept: str | None, name: str) -> None:
    assert chosen(None, accept).name == name


def written(masks: list[Any], name: str, size: tuple[int, int] = SIZE, pages: int = 1) -> Any:
    return json.loads(BY_NAME[name].write(Content(masks, size, "vit_t", 0, pages)).body)


def cut(full: NDArray[np.bool_]) -> ObjectMask:
    packed = PackedMask.of(full, stability_score=1.0)
    return PromptMask(packed.pixels(), packed.box, SIZE, predicted_iou=0.5, prompt_idx=0)


def test_a_feature_collection_holds_the_features() -> None:
    full = np.zeros(SIZE, np.bool_)
    full[3:9, 5:7] = True
    masks = [cut(full)] * 2
    collection = written(masks, "feature_collection")
    features = written(masks, "features")
    assert collection == {"type": "FeatureCollection", "features": features, "pages": 1}
    empty = {"type": "FeatureCollection", "features": [], "pages": 7}
    assert written([], "feature_collection", pages=7) == empty
    assert written([], "features") == written([], "coco_rle") == []


def masks_of_every_shape() -> list[NDArray[np.bool_]]:
    generator = np.random.default_rng(1)
    shapes = [np.ones(SIZE, np.bool_)]
    for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
        pixel = np.zeros(SIZE, np.bool_)
        pixel[corner] = True
        shapes.append(pixel)
    columns = np.zeros(SIZE, np.bool_)
    columns[:, 10:13] = True  # runs that go on from the bottom of one column to the next's top
    columns[7, 11] = False
    shapes.append(columns)
    for share in (0.02, 0.3, 0.5, 0.9, 0.99):
        shapes += [generator.random(SIZE) < share for _ in range(20)]
    crop = np.zeros(SIZE, np.bool_)
    crop[12:30, 20:51] = generator.random((18, 31)) < 0.7
    return [*shapes, crop]


def test_run_lengths_are_cocos_own() -> None:
    for full in masks_of_every_shape():
        [record] = written([cut(full)], "coco_rle")
        expected = coco.encode(np.asfortranarray(full))
        assert record["segmentation"] == {
            "size": list(SIZE),
            "counts": expected["counts"].decode(),
        }
        assert record["area"] == coco.area(expected) == full.sum()


def test_records_are_segment_anythings() -> None:
    mask = AutoMask(
        mask=np.ones((2, 3), np.bool_),
        box=Box(4, 5, 7, 7),
        image_size=SIZE,
        predicted_iou=0.5,
        stability_score=0.75,
        point_coords=[[5.5, 6.0]],
    )
    [record] = written([mask], "coco_rle")
    del record["segmentation"]
    assert record == {
        "area": 6,
        "bbox": [4, 5, 2, 1],
        "predicted_iou": 0.5,
        "stability_score": 0.75,
        "point_coords": [[5.5, 6.0]],
    }


def test_an_empty_mask_is_no_object_in_any_form() -> None:
    empty = cut(np.zeros(SIZE, np.bool_))
    assert written([empty], "features") == written([empty], "coco_rle") == []


def test_large_pictures_cost_by_the_object() -> None:
    """A frame of 2.5 billion pixels would not fit anywhere."""
    mask = ObjectMask(np.ones((2, 2), np.bool_), Box(49_000, 3, 49_002, 5), (50_000, 50_000), 0.5)
    [record] = written([mask], "coco_rle", (50_000, 50_000))
    assert coco.area({**record["segmentation"]}) == 4
    assert coco.toBbox({**record["segmentation"]}).tolist() == [49_000, 3, 2, 2]
