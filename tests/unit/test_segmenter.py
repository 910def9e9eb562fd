"""The library's interface: what it accepts, and that its masks are the reference's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mobile_sam import SamAutomaticMaskGenerator, SamPredictor
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

import samserve
from samserve.errors import InvalidField, InvalidImage, TimedOut, TooLarge
from samserve.network.devices import DeviceError
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


@pytest.mark.parametrize("page", [-1, 1, True, 0.0, "0", None])
@pytest.mark.parametrize("source", ["bytes", "array", "PIL image"])
def test_a_page_that_does_not_exist(
    segmenter: Segmenter, tmp_path: Path, source: str, page: Any
) -> None:
    with pytest.raises(InvalidField, match="page"):
        segmenter.embed(SOURCES[source](tmp_path), page=page)


@pytest.mark.parametrize("source", ["bytes", "array", "grey array", "PIL image", "path"])
def test_every_source_is_limited(segmenter: Segmenter, tmp_path: Path, source: str) -> None:
    with pytest.raises(TooLarge):
        segmenter.embed(SOURCES[source](tmp_path), max_pixels=COINS.shape[0] * COINS.shape[1] - 1)


@pytest.mark.parametrize("source", [None, 5, [COINS], BytesIO(b"")])
def test_what_is_no_picture_at_all(segmenter: Segmenter, source: Any) -> None:
    with pytest.raises(TypeError, match="a path, bytes, a PIL image or a NumPy array, not"):
        segmenter.embed(source)


def test_a_picture_that_is_not_embedded(segmenter: Segmenter) -> None:
    with pytest.raises(TypeError, match="picture must be"):
        segmenter.prompt(COINS, box=BOX)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="picture must be"):
        segmenter.automask(COINS)  # type: ignore[arg-type]


def test_a_pil_image_that_cannot_be_read(segmenter: Segmenter) -> None:
    truncated = Image.open(BytesIO(png(COINS)[:1000]))
    with pytest.raises(InvalidImage, match="PIL image cannot be read"):
        segmenter.embed(truncated)


@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_that_is_changed_later(segmenter: Segmenter, channels: int) -> None:
    pixels = COINS.copy() if channels == 3 else COINS[:, :, 0].copy()
    embedded = segmenter.embed(pixels)
    pixels[:] = 0
    np.testing.assert_array_equal(embedded.pixels(), COINS)
    with pytest.raises(ValueError, match="read-only"):
        embedded.pixels()[0, 0] = 0


def test_the_representation_of_results_is_short(segmenter: Segmenter) -> None:
    embedded = segmenter.embed(COINS)
    [mask] = segmenter.prompt(embedded, box=BOX)
    [automask, *_] = segmenter.automask(embedded, points_per_side=2)
    assert all(len(repr(result)) < 500 for result in (embedded, mask, automask))


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
        ({"mask_input": "logits"}, "mask_input"),
        ({"mask_input": np.full((256, 256), 1e300)}, "mask_input"),
        ({"box": (20 + 1j, 30, 70, 78)}, "box"),
        ({"box": (10**400, 30, 70, 78)}, "box"),
        ({"box": np.array(BOX, "datetime64[s]")}, "box"),
        ({"box": ((20, 30), (70,))}, "box"),
        ({"box": torch.tensor(BOX, dtype=torch.float32, requires_grad=True)}, "box"),
        ({"point_coords": [["45", "55"]], "point_labels": [1]}, "point_coords"),
        ({"point_coords": [[45, 55]], "point_labels": [None]}, "point_labels"),
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


def test_a_callback_may_prompt_and_may_fail(segmenter: Segmenter) -> None:
    """It runs in the caller's thread. In a decoder's thread, a prompt would wait for itself."""
    embedded = segmenter.embed(COINS)
    threads: set[int] = set()

    def prompting(done: int, total: int) -> None:
        threads.add(threading.get_ident())
        segmenter.prompt(embedded, box=BOX)

    assert segmenter.automask(embedded, points_per_side=4, points_per_batch=1, progress=prompting)
    assert threads == {threading.get_ident()}

    def failing(done: int, total: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        segmenter.automask(embedded, points_per_side=4, progress=failing)


def test_wrong_parameters_of_automask(segmenter: Segmenter) -> None:
    embedded = segmenter.embed(COINS)
    with pytest.raises(TypeError, match="no parameter points_per_sid"):
        segmenter.automask(embedded, points_per_sid=4)  # type: ignore[call-arg]
    with pytest.raises(InvalidField, match="points_per_side"):
        segmenter.automask(embedded, points_per_side=0)
    with pytest.raises(TimedOut, match="of 1024 points"):
        segmenter.automask(embedded, timeout_s=1e-9)


def test_arguments_of_load_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model type 'vit_x'; use vit_t"):
        samserve.load("vit_x")
    with pytest.raises(ValueError, match="no precision 'half'; use float32"):
        samserve.load(precision="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no device 'gpu0'"):
        samserve.load(device="gpu0")
    with pytest.raises(DeviceError, match="cannot use the device cuda:99"):
        samserve.load(device="cuda:99")


def test_parameters_of_automask_name_unknown_ones() -> None:
    with pytest.raises(ValidationError, match="points_per_sid"):
        samserve.AutomaskParameters(points_per_sid=4)  # type: ignore[call-arg]
