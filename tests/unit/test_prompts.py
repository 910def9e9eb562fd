"""Boxes against `SamPredictor`, on pictures of every kind of shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mobile_sam import SamPredictor
from numpy.typing import NDArray

from samserve import prompts
from samserve.decoder import PROMPTS_AT_ONCE
from samserve.encoder import Encoder
from samserve.errors import InvalidField, InvalidImage
from samserve.features import PromptMask
from samserve.requests import PromptRequest
from tests.conftest import picture, segmenter_of
from tests.geometry import full_frame, same_mask

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
    [masks] = prompts.predict(segmenter, segmenter.embeddings.of_pixels(image).image, [request])
    return masks


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


def test_several_requests_for_one_image(model: Any) -> None:
    """Decoded together, answered apart, each with as many masks as it asked for."""
    boxes = [(20.0, 30.0, 70.0, 78.0), (5.0, 10.0, 300.0, 200.0)]
    asked: list[dict[str, Any]] = [
        {"bbox": boxes[0], "multimask_output": True},
        {"prompts": [{"bbox": box} for box in boxes]},
    ]
    segmenter = segmenter_of(model)
    pixels = picture("coins")
    image = segmenter.embeddings.of_pixels(pixels).image
    requests = [PromptRequest.model_validate({"b64img": "", **fields}) for fields in asked]
    together = prompts.predict(segmenter, image, requests)
    assert [[m.prompt_idx for m in masks] for masks in together] == [[0, 0, 0], [0, 1]]
    for request, masks in zip(requests, together, strict=True):
        [alone] = prompts.predict(segmenter, image, [request])
        for ours, expected in zip(masks, alone, strict=True):
            assert same_mask(full_frame(ours, pixels), full_frame(expected, pixels))
            assert ours.predicted_iou == pytest.approx(expected.predicted_iou, abs=1e-5)


def test_a_box_outside(model: Any) -> None:
    with pytest.raises(InvalidField, match="outside"):
        predict(model, picture("coins"), bbox=(9999.0, 0.0, 10000.0, 5.0))


def test_too_thin_to_encode(model: Any) -> None:
    with pytest.raises(InvalidImage, match="3000x1 image is too thin"):
        Encoder(model).encode(np.zeros((1, 3000, 3), np.uint8))
