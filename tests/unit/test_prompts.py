"""Boxes against `SamPredictor`, on pictures of every kind of shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mobile_sam import SamPredictor
from numpy.typing import NDArray

from samserve import prompts
from samserve.encoder import encode
from samserve.errors import InvalidImage
from samserve.requests import PromptRequest
from tests.conftest import picture
from tests.geometry import full_frame

PICTURES = {
    "landscape": picture("coins"),
    "portrait": np.ascontiguousarray(picture("coffee").transpose(1, 0, 2)),
    "larger than the network's input": np.tile(picture("astronaut"), (3, 4, 1)),
    "a strip": picture("rocket")[200:240],
    "tiny": picture("chelsea")[100:116, 150:170],
    "one pixel": picture("chelsea")[:1, :1],
}


@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES.keys())
def test_equal_to_the_reference(model: Any, image: NDArray[np.uint8]) -> None:
    height, width = image.shape[:2]
    boxes = [
        (0.0, 0.0, width, height),
        (0.2 * width, 0.3 * height, 0.6 * width, 0.9 * height),
        (0.5 * width, 0.1 * height, 0.75 * width, 0.45 * height),
    ]
    request = PromptRequest.model_validate(
        {"b64img": "", "prompts": [{"bbox": box} for box in boxes], "multimask_output": True}
    )
    found = prompts.predict(model, image, request)
    reference = SamPredictor(model)
    reference.set_image(image)
    assert [m.prompt_idx for m in found] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for index, box in enumerate(boxes):
        masks, quality, _ = reference.predict(box=np.array(box), multimask_output=True)
        for ours, mask, iou in zip(found[3 * index : 3 * index + 3], masks, quality, strict=True):
            assert np.count_nonzero(full_frame(ours, image) != mask) <= 1e-6 * mask.size
            assert ours.predicted_iou == pytest.approx(iou, abs=1e-5)


def test_more_prompts_than_a_batch(model: Any) -> None:
    n = prompts.PROMPTS_PER_BATCH + 3
    boxes = [(5.0 * i, 10.0, 5.0 * i + 60, 90.0) for i in range(n)]
    request = PromptRequest.model_validate(
        {"b64img": "", "prompts": [{"bbox": box} for box in boxes]}
    )
    found = prompts.predict(model, picture("coins"), request)
    assert [m.prompt_idx for m in found] == list(range(n))
    last = PromptRequest.model_validate({"b64img": "", "bbox": boxes[-1]})
    [alone] = prompts.predict(model, picture("coins"), last)
    assert np.array_equal(found[-1].mask, alone.mask)


def test_too_thin_to_encode(model: Any) -> None:
    with pytest.raises(InvalidImage, match="3000x1 image is too thin"):
        encode(model, np.zeros((1, 3000, 3), np.uint8))
