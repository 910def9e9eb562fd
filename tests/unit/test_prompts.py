"""Prompts against `SamPredictor`, on pictures of every kind of shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mobile_sam import SamPredictor
from numpy.typing import NDArray

from samserve import prompts
from samserve.errors import InvalidField, InvalidImage
from samserve.masks.mask import PromptMask
from samserve.network.decoder import PROMPTS_AT_ONCE
from samserve.network.encoder import Embedding, Encoder
from samserve.pictures.decoding import decode_page
from samserve.serving.prompts import prompts_of
from samserve.serving.requests import PromptRequest
from tests.support.geometry import full_frame, same_mask
from tests.support.sample_pictures import base64_png, picture
from tests.support.segmenters import segmenter_of
from tests.support.settings import SETTINGS

LIMITS = SETTINGS.limits

PICTURES = {
    "landscape": picture("coins"),
    "portrait": np.ascontiguousarray(picture("coffee").transpose(1, 0, 2)),
    "larger than the network's input": np.tile(picture("astronaut"), (3, 4, 1)),
    "a strip": picture("rocket")[200:240],
    "tiny": picture("chelsea")[100:116, 150:170],
    "one pixel": picture("chelsea")[:1, :1],
    "nothing to see": np.zeros((300, 400, 3), np.uint8),
}


def predict(model: Any, image: NDArray[np.uint8], **fields: Any) -> list[PromptMask]:
    segmenter = segmenter_of(model)
    request = PromptRequest.model_validate({"b64img": "", **fields})
    known = segmenter.model.embeddings.of_pixels(image).image
    located = prompts_of(request, known.embedding, LIMITS, decode_page)
    [masks] = prompts.predict(segmenter.model, known, [located])
    return [mask.unpacked() for mask in masks]


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES.keys())
def test_equal_to_the_reference(model: Any, image: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    boxes = [
        (0.0, 0.0, width, height),
        (0.2 * width, 0.3 * height, 0.6 * width, 0.9 * height),
        (0.5 * width, 0.1 * height, 0.75 * width, 0.45 * height),
    ]
    each = [{"bbox": box} for box in boxes]
    found = predict(model, image, prompts=each, multimask_output=True)
    reference = SamPredictor(model)
    reference.set_image(image)
    assert [m.prompt_idx for m in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for index, box in enumerate(boxes):
        masks, quality, _ = reference.predict(box=np.array(box), multimask_output=True)
        for ours, mask, iou in zip(found[3 * index : 3 * index + 3], masks, quality, strict=True):
            assert same_mask(full_frame(ours, image), mask)
            assert ours.predicted_iou == pytest.approx(iou, abs=1e-5)


def test_more_prompts_than_a_batch(model: Any) -> None:
    n = PROMPTS_AT_ONCE + 3
    boxes = [(5.0 * i, 10.0, 5.0 * i + 60, 90.0) for i in range(n)]
    found = predict(model, picture("coins"), prompts=[{"bbox": box} for box in boxes])
    assert [m.prompt_idx for m in found] == list(range(n))
    [alone] = predict(model, picture("coins"), bbox=boxes[-1])
    image = picture("coins")
    assert same_mask(full_frame(found[-1], image), full_frame(alone, image))


def grey_png(mask: NDArray[Any]) -> str:
    return base64_png(np.asarray(mask, np.uint8) * 255)


def quarter(size: tuple[int, ...], x0: float, y0: float, x1: float, y1: float) -> NDArray[np.bool_]:
    """A mask of this size with an ellipse within these parts of it."""
    height, width = size[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    inside: NDArray[np.bool_] = (
        ((x / width - (x0 + x1) / 2) / (x1 - x0)) ** 2
        + ((y / height - (y0 + y1) / 2) / (y1 - y0)) ** 2
    ) < 0.25
    return inside


@pytest.mark.parametrize("multimask_output", [False, True])
@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES.keys())
def test_points_boxes_and_masks_as_the_reference(
    model: Any, image: NDArray[np.uint8], multimask_output: bool
) -> None:
    """Every way of prompting, all in one request, each as `SamPredictor` answers it alone."""
    height, width = image.shape[:2]
    points = np.array([[0.4 * width, 0.5 * height], [0.1 * width, 0.2 * height]])
    box = np.array([0.2 * width, 0.3 * height, 0.6 * width, 0.9 * height])
    drawn = quarter((256, 256), 0.1, 0.05, 0.3, 0.15)
    logits = np.where(drawn, 1, -1) * np.log(0.999 / 0.001)
    many = np.random.default_rng(3).random((40, 2)) * [width, height]
    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"points": points[:1], "labels": [1]}, {}),
        ({"points": points, "labels": [0, 1]}, {}),
        ({"points": points[::-1], "labels": [0, 1]}, {"bbox": box}),
        ({"points": many, "labels": [1, 0] * 20}, {}),
        ({}, {"mask": logits}),
        ({}, {"bbox": box, "mask": logits}),
        ({"points": points[:1], "labels": [1]}, {"bbox": box, "mask": logits}),
        ({}, {"bbox": box}),
    ]
    asked: list[dict[str, Any]] = []
    for pointed, others in ways:
        fields: dict[str, Any] = {}
        if pointed:
            fields["point_coords"] = [tuple(map(float, point)) for point in pointed["points"]]
            fields["point_labels"] = pointed["labels"]
        if "bbox" in others:
            fields["bbox"] = tuple(map(float, box))
        if "mask" in others:
            fields["b64mask"] = grey_png(drawn)
        asked.append(fields)
    found = predict(model, image, prompts=asked, multimask_output=multimask_output)
    reference = SamPredictor(model)
    reference.set_image(image)
    each = 3 if multimask_output else 1
    assert [m.prompt_idx for m in found] == [i for i in range(len(ways)) for _ in range(each)]
    for index, (pointed, others) in enumerate(ways):
        masks, quality, _ = reference.predict(
            point_coords=pointed.get("points"),
            point_labels=np.array(pointed["labels"]) if pointed else None,
            box=others.get("bbox"),
            mask_input=others["mask"][None] if "mask" in others else None,
            multimask_output=multimask_output,
        )
        for ours, mask, iou in zip(
            found[each * index : each * (index + 1)], masks, quality, strict=True
        ):
            assert same_mask(full_frame(ours, image), mask), index
            assert ours.predicted_iou == pytest.approx(iou, abs=1e-5)


def test_a_point_outside(model: Any) -> None:
    coins = picture("coins")
    height, width = coins.shape[:2]
    for x, y in ((0, 0), (width, height)):
        assert predict(model, coins, point_coords=[(float(x), float(y))], point_labels=[1])
    for x, y in ((-1, 5), (width + 1, 5), (5, -0.5), (5, height + 1)):
        with pytest.raises(InvalidField, match=r"point_coords.1: .* outside the 384x303 image"):
            predict(model, coins, point_coords=[(1.0, 1.0), (x, y)], point_labels=[1, 1])


def test_several_requests_for_one_image(model: Any) -> None:
    """Decoded together, answered apart, each with as many masks as it asked for."""
    boxes = [(20.0, 30.0, 70.0, 78.0), (5.0, 10.0, 300.0, 200.0)]
    asked: list[dict[str, Any]] = [
        {"bbox": boxes[0], "multimask_output": True},
        {"prompts": [{"bbox": box} for box in boxes]},
    ]
    segmenter = segmenter_of(model)
    pixels = picture("coins")
    image = segmenter.model.embeddings.of_pixels(pixels).image
    requests = [
        prompts_of(
            PromptRequest.model_validate({"b64img": "", **fields}),
            image.embedding,
            LIMITS,
            decode_page,
        )
        for fields in asked
    ]
    together = prompts.predict(segmenter.model, image, requests)
    assert [[m.prompt_idx for m in masks] for masks in together] == [[0, 0, 0], [0, 1]]
    for request, masks in zip(requests, together, strict=True):
        [alone] = prompts.predict(segmenter.model, image, [request])
        for ours, expected in zip(masks, alone, strict=True):
            found = full_frame(ours.unpacked(), pixels)
            assert same_mask(found, full_frame(expected.unpacked(), pixels))
            assert ours.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-5)


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ((0, 0, 384, 303), True),
        ((-5, -5, 390, 310), True),
        ((383.5, 302.5, 400, 400), True),
        ((384, 0, 400, 50), False),
        ((0, 303, 100, 310), False),
        ((-20, 0, 0, 50), False),
        ((0, -20, 100, 0), False),
    ],
    ids=str,
)
def test_a_box_must_meet_the_image(
    model: Any, box: tuple[float, float, float, float], inside: bool
) -> None:
    """384 pixels wide, 303 high."""
    asked = PromptRequest.model_validate({"b64img": "", "prompts": [{"bbox": box}]})
    embedding = Embedding(torch.zeros(1), (808, 1024), (303, 384))
    if inside:
        [located] = prompts_of(asked, embedding, LIMITS, decode_page)
        assert located.box is not None
        assert tuple(located.box) == box
    else:
        with pytest.raises(InvalidField, match="outside the 384x303 image") as refused:
            prompts_of(asked, embedding, LIMITS, decode_page)
        assert refused.value.field == "prompts.0.bbox"


def test_too_thin_to_encode(model: Any) -> None:
    with pytest.raises(InvalidImage, match="3000x1 image is too thin"):
        Encoder(model).encode(np.zeros((1, 3000, 3), np.uint8))
