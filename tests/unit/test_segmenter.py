"""The library's interface: what it accepts, and that its masks are the reference's."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mobile_sam import SamAutomaticMaskGenerator, SamPredictor
from numpy.typing import NDArray
from PIL import Image

import samserve
from samserve.errors import InvalidField, InvalidImage, TimedOut, TooLarge
from samserve.segmenter import Segmenter
from tests.support.geometry import same_mask
from tests.support.sample_pictures import picture
from tests.support.segmenters import segmenter_of

COINS = picture("coins")
BOX = (20, 30, 70, 78)


@pytest.fixture(scope="module")
def segmenter(model: Any) -> Segmenter:
    return segmenter_of(model)


def png(pixels: NDArray[Any], form: str = "PNG") -> bytes:
    content = BytesIO()
    Image.fromarray(pixels).save(content, form)
    return content.getvalue()


def written(folder: Path) -> Path:
    path = folder / "coins.png"
    path.write_bytes(png(COINS))
    return path


SOURCES: dict[str, Callable[[Path], Any]] = {
    "path": written,
    "path as text": lambda folder: str(written(folder)),
    "bytes": lambda folder: png(COINS),
    "TIFF bytes": lambda folder: png(COINS, "TIFF"),
    "PIL image": lambda folder: Image.fromarray(COINS),
    "PIL image in grey": lambda folder: Image.fromarray(COINS).convert("L"),
    "array": lambda folder: COINS,
    "grey array": lambda folder: COINS[:, :, 0],
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_gives_the_same_mask(
    segmenter: Segmenter, reference_masks: Any, tmp_path: Path, source: str
) -> None:
    embedded = segmenter.embed(SOURCES[source](tmp_path))
    assert embedded.size == COINS.shape[:2]
    np.testing.assert_array_equal(embedded.pixels(), COINS)
    [mask] = segmenter.prompt(embedded, box=BOX)
    [expected], [iou] = reference_masks("coins", list(BOX))
    assert same_mask(mask.array, expected)
    assert mask.predicted_iou == pytest.approx(iou, abs=1e-5)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.uint16),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
    ids=["four channels", "16 bits", "floats", "empty", "one dimension"],
)
def test_arrays_that_are_no_picture(segmenter: Segmenter, pixels: Any) -> None:
    with pytest.raises(InvalidImage, match="array"):
        segmenter.embed(pixels)


def test_files_that_are_no_picture(segmenter: Segmenter, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        segmenter.embed(tmp_path / "none.png")
    with pytest.raises(InvalidImage):
        segmenter.embed(b"not an image")
    with pytest.raises(TooLarge):
        segmenter.embed(png(COINS), max_pixels=1000)
    with pytest.raises(InvalidField, match="page"):
        segmenter.embed(png(COINS), page=1)


def test_a_page_of_a_tiff(segmenter: Segmenter) -> None:
    content = BytesIO()
    pages = [Image.fromarray(COINS), Image.fromarray(COINS[::-1].copy())]
    pages[0].save(content, "TIFF", save_all=True, append_images=pages[1:])
    embedded = segmenter.embed(content.getvalue(), page=1)
    assert embedded.pages == 2
    np.testing.assert_array_equal(embedded.pixels(), COINS[::-1])


@pytest.mark.parametrize(
    "prompt",
    [
        {"point_coords": [[45, 55], [5, 5]], "point_labels": [1, 0]},
        {"point_coords": np.array([[45.0, 55.0]]), "point_labels": np.array([1])},
        {"box": np.array(BOX), "point_coords": [[45, 55]], "point_labels": [1]},
        {"box": BOX, "multimask_output": True},
    ],
    ids=["points", "arrays", "box and point", "three masks"],
)
def test_prompts_are_those_of_the_reference(
    model: Any, segmenter: Segmenter, prompt: dict[str, Any]
) -> None:
    reference = SamPredictor(model)
    reference.set_image(COINS)
    arguments = {name: np.array(value) for name, value in prompt.items()}
    arguments["multimask_output"] = prompt.get("multimask_output", False)
    expected, ious, _ = reference.predict(**arguments)
    masks = segmenter.prompt(segmenter.embed(COINS), **prompt)
    assert len(masks) == len(expected)
    for mask, pixels, iou in zip(masks, expected, ious, strict=True):
        assert same_mask(mask.array, pixels)
        assert mask.predicted_iou == pytest.approx(float(iou), abs=1e-4)


def test_a_mask_input_refines_the_last_mask(model: Any, segmenter: Segmenter) -> None:
    reference = SamPredictor(model)
    reference.set_image(COINS)
    _, _, logits = reference.predict(box=np.array(BOX), multimask_output=False)
    [expected], _, _ = reference.predict(
        box=np.array(BOX), mask_input=logits, multimask_output=False
    )
    [mask] = segmenter.prompt(segmenter.embed(COINS), box=BOX, mask_input=logits)
    assert same_mask(mask.array, expected)


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ({}, "box"),
        ({"box": (1, 2, 3)}, "box"),
        ({"box": (70, 30, 20, 78)}, "box"),
        ({"box": (20, 30, float("nan"), 78)}, "box"),
        ({"box": "coin"}, "box"),
        ({"box": (1000, 1000, 2000, 2000)}, "box"),
        ({"point_coords": [[1, 2]]}, "point_labels"),
        ({"point_coords": [], "point_labels": []}, "point_coords"),
        ({"point_coords": [1, 2], "point_labels": [1]}, "point_coords"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "point_labels"),
        ({"point_coords": [[-1, 2]], "point_labels": [1]}, "point_coords.0"),
        ({"mask_input": np.zeros((2, 2))}, "mask_input"),
        ({"box": BOX, "mask_input": np.full((256, 256), np.inf)}, "mask_input"),
    ],
)
def test_wrong_prompts_name_their_argument(
    segmenter: Segmenter, prompt: dict[str, Any], field: str
) -> None:
    embedded = segmenter.embed(COINS)
    with pytest.raises(InvalidField) as refused:
        segmenter.prompt(embedded, **prompt)
    assert refused.value.field == field


def test_automask_is_that_of_the_reference(model: Any, segmenter: Segmenter) -> None:
    reports: list[tuple[int, int]] = []
    objects = segmenter.automask(
        segmenter.embed(COINS),
        points_per_side=4,
        progress=lambda done, total: reports.append((done, total)),
    )
    expected = SamAutomaticMaskGenerator(model, points_per_side=4).generate(COINS)
    assert len(objects) == len(expected) > 3
    for mask, record in zip(objects, expected, strict=True):
        assert same_mask(mask.array, record["segmentation"])
    assert reports[0] == (0, 16)
    assert reports[-1] == (16, 16)
    features = samserve.to_geojson(objects)
    assert [feature["properties"]["area"] for feature in features] == [o.area for o in objects]


def test_wrong_parameters_of_automask(segmenter: Segmenter) -> None:
    embedded = segmenter.embed(COINS)
    with pytest.raises(TypeError, match="no parameter points_per_sid"):
        segmenter.automask(embedded, points_per_sid=4)
    with pytest.raises(InvalidField, match="points_per_side"):
        segmenter.automask(embedded, points_per_side=0)
    with pytest.raises(TimedOut, match="of 1024 points"):
        segmenter.automask(embedded, timeout_s=1e-9)


def test_a_model_type_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="no model type 'vit_x'; use vit_t"):
        samserve.load("vit_x")
