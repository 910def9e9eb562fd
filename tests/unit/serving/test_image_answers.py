"""A worker's answers as images say what its GeoJSON says."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samserve.errors import TimedOut
from samserve.pictures.decoder_process import DecoderProcess
from samserve.progress import Job
from samserve.serving import rows
from tests.support.geometry import rasterise
from tests.support.handlers import Answered, answers, handler_of
from tests.support.sample_pictures import base64_png, picture
from tests.support.segmenters import segmenter_of
from tests.support.settings import SETTINGS

IMAGE = base64_png(picture("coins"))
SIZE = picture("coins").shape[:2]
PROMPT: dict[str, Any] = {
    "type": "vit_t",
    "b64img": IMAGE,
    "prompts": [{"bbox": [20, 30, 70, 78]}, {"bbox": [0, 0, 384, 303]}, {"bbox": [30, 40, 60, 70]}],
}
AUTOMASK: dict[str, Any] = {
    "type": "vit_t",
    "b64img": IMAGE,
    "points_per_side": 4,
    "output_type": "Multi-mask (all)",
}
BODIES: dict[str, dict[str, Any]] = {"prompt": PROMPT, "automask": AUTOMASK}
PNG = {"Accept": "image/png"}


@pytest.fixture(scope="module")
def lanes(model: Any) -> Iterator[dict[str, Any]]:
    process, segmenter = DecoderProcess(), segmenter_of(model)
    yield {
        "prompt": handler_of(segmenter, process),
        "automask": handler_of(segmenter, process, "vit_t-automask"),
    }
    process.close()


def read(png: bytes) -> NDArray[Any]:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image)


def ask(lane: Any, body: dict[str, Any], **headers: str) -> Answered:
    [answered] = answers(lane, [body], [headers])
    return answered


@pytest.mark.parametrize("mode", BODIES)
def test_an_image_of_the_features(lanes: dict[str, Any], mode: str) -> None:
    lane, body = lanes[mode], BODIES[mode]
    features = ask(lane, body).body
    masks = [rasterise(feature["geometry"], *SIZE) for feature in features]
    expected = np.zeros(SIZE, np.uint16)
    for index in sorted(range(len(masks)), key=lambda index: -np.count_nonzero(masks[index])):
        expected[masks[index]] = index + 1
    answered = ask(lane, {**body, "output_format": "label_png"})
    np.testing.assert_array_equal(read(answered.body), expected)
    assert answered.headers["content-type"] == "image/png"
    assert answered.headers["X-Samserve-Objects"] == str(len(features))
    qualities = [float(quality) for quality in answered.headers["X-Samserve-Quality"].split(",")]
    said = [feature["properties"]["quality"] for feature in features]
    assert qualities == pytest.approx(said, abs=6e-5)
    assert ask(lane, body, **PNG).body == answered.body

    union = read(ask(lane, {**body, "output_format": "mask_png"}).body)
    np.testing.assert_array_equal(union, np.where(np.any(masks, axis=0), 255, 0))


def test_nothing_found(lanes: dict[str, Any]) -> None:
    body = {**AUTOMASK, "points_per_side": 1, "pred_iou_thresh": 1.0, "output_format": "label_png"}
    answered = ask(lanes["automask"], body)
    assert not read(answered.body).any()
    assert answered.headers["X-Samserve-Objects"] == "0"
    assert "X-Samserve-Quality" not in answered.headers


def test_what_an_image_cannot_hold(lanes: dict[str, Any]) -> None:
    for form in ({"output_format": "mask_png"}, {}):
        refused = ask(lanes["prompt"], {**PROMPT, **form, "return_logits": True}, **PNG)
        assert (refused.status, refused.body["error"]["field"]) == (422, "return_logits")
    streamed = {"Samserve-Stream": "true"}
    body = {**AUTOMASK, "output_format": "label_png"}
    refused = ask(lanes["automask"], body, **streamed)
    assert (refused.status, refused.body["error"]["field"]) == (422, "output_format")


def test_an_automask_that_runs_out_of_time_shows_what_it_found(lanes: dict[str, Any]) -> None:
    answered = ask(lanes["automask"], {**AUTOMASK, "output_format": "label_png", "timeout_s": 1e-9})
    assert (answered.status, answered.code) == (TimedOut.status, "timeout")
    head, _, data = answered.body["found"].partition(",")
    assert head == "data:image/png;base64"
    assert not read(base64.b64decode(data)).any()
    job = Job()
    made = rows.partial(rows.Answer(200, "image/png", b"\x89PNG"), job)
    assert b'"found":"data:image/png;base64,iVBORw=="' in made.body


def test_a_large_image_is_no_work_for_the_prompt_lane(lanes: dict[str, Any], model: Any) -> None:
    """The time for the image is asked for before it is drawn."""
    light = SETTINGS.light.model_copy(update={"masks_s": 0.05, "batch_masks_s": 0.05})
    settings = SETTINGS.model_copy(update={"light": light})
    lane = handler_of(lanes["prompt"].segmenter, lanes["prompt"].decoder, settings=settings)
    large = np.zeros((2600, 2600, 3), np.uint8)
    large[100:200, 100:200] = 255
    body = {"type": "vit_t", "b64img": base64_png(large), "bbox": [100, 100, 200, 200]}
    assert ask(lane, body).status == 200
    for form in ({"output_format": "label_png"}, {"output_format": "mask_png"}):
        heavy = ask(lane, {**body, **form})
        assert (heavy.status, heavy.code) == (421, "heavy")
        assert ask(lanes["automask"], {**body, **form}, **{"X-Mode": "prompt"}).status == 200
