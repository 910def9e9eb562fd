"""Whatever the outlines are, the prompt lane gives them up early, and an answer has a limit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pybase64
import pytest

from samserve.errors import Heavy, TooLarge
from samserve.masks.full_size import FullSize
from samserve.masks.mask import Compact, CompactPromptMask
from samserve.network.encoder import Embedding
from samserve.pictures.decoder_process import DecoderProcess
from samserve.serving.budgets import OutlineBudget, decode_for, seconds_of_mask
from samserve.serving.requests import PromptRequest
from tests.support.handlers import answers, handler_of
from tests.support.sample_pictures import base64_png, picture
from tests.support.segmenters import segmenter_of
from tests.support.settings import SETTINGS

SIDE = 700
NOISE = base64_png(np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8))
WHOLE = [5, 5, SIDE - 20, SIDE - 20]
COMPLEX = {"type": "vit_t", "bbox": WHOLE, "b64img": NOISE, "multimask_output": True}
CLICK = {"type": "vit_t", "bbox": [20, 30, 70, 78], "b64img": base64_png(picture("coins"))}
FORMS: list[dict[str, Any]] = [
    {},
    {"simplify": 0.5},
    {"simplify": 1000},
    {"output_format": "feature_collection"},
    {"output_format": "coco_rle"},
]


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    process = DecoderProcess()
    yield process
    process.close()


def handler(model: Any, decoder: DecoderProcess, lane: str = "vit_t", **changes: Any) -> Any:
    """Return a lane's handler with other limits."""
    changed = {
        part: getattr(SETTINGS, part).model_copy(update=values) for part, values in changes.items()
    }
    settings = SETTINGS.model_copy(update=changed)
    return handler_of(segmenter_of(model), decoder, lane, settings)


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_complex_outlines_leave_the_batch_to_the_clicks(
    model: Any, decoder: DecoderProcess, fields: dict[str, Any]
) -> None:
    tight = {"masks_s": 0.02, "batch_masks_s": 0.08}
    lane = handler(model, decoder, light=tight)
    got = answers(lane, [{**COMPLEX, **fields}, CLICK, {**COMPLEX, **fields}, CLICK])
    assert [answer.status for answer in got] == [421, 200, 421, 200]
    assert "requests of 0.02 s" in got[0].message
    relaxed = handler(model, decoder, light={"masks_s": 60, "batch_masks_s": 120})
    assert answers(relaxed, [{**COMPLEX, **fields}])[0].status == 200


def test_requests_share_the_time_of_their_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is allowed alone, and all of them together are too much."""
    now_s = 0.0
    monkeypatch.setattr(time, "thread_time", lambda: now_s)
    light = SETTINGS.light.model_copy(update={"masks_s": 0.4, "batch_masks_s": 1.0})
    budget = OutlineBudget(SETTINGS.limits, light)

    def outline(took_s: float, next_s: float) -> None:
        """Outline for some seconds, and then ask for a step of so many more."""
        nonlocal now_s
        with budget.request([]) as allow:
            now_s += took_s
            allow(0, next_s)

    outline(0.3, 0.05)
    outline(0.3, 0.05)
    with pytest.raises(Heavy):
        outline(0.3, 0.2)  # 0.5 s for one request
    outline(0, 0.09)
    with pytest.raises(Heavy):
        outline(0, 0.11)  # after 0.9 s of the batch


@pytest.mark.parametrize("fields", FORMS, ids=str)
def test_vertices_of_an_answer_have_a_limit(
    model: Any, decoder: DecoderProcess, fields: dict[str, Any]
) -> None:
    lane = handler(model, decoder, "vit_t-automask", limits={"max_vertices": 5000})
    [answer] = answers(lane, [{**COMPLEX, **fields}], [{"X-Mode": "prompt"}])
    assert (answer.status, answer.code) == (413, "too_large")
    assert "5000 vertices" in answer.message
    assert answers(lane, [{**CLICK, **fields}], [{"X-Mode": "prompt"}])[0].status == 200


def test_vertices_of_an_automask_have_the_same_limit(model: Any, decoder: DecoderProcess) -> None:
    lane = handler(model, decoder, "vit_t-automask", limits={"max_vertices": 100})
    body = {"b64img": CLICK["b64img"], "points_per_side": 4, "simplify": 1000}
    [answer] = answers(lane, [body])
    assert (answer.status, answer.code) == (413, "too_large")


def test_masks_that_are_too_large_together_are_refused_by_the_header(
    model: Any, decoder: DecoderProcess
) -> None:
    """The picture is cut off, which nobody notices."""
    cut = pybase64.b64encode(pybase64.b64decode(NOISE)[:2000]).decode()
    lane = handler(model, decoder, limits={"max_mask_pixels": 20 * SIDE * SIDE})
    many = {**COMPLEX, "bbox": None, "prompts": [{"bbox": WHOLE}] * 7, "b64img": cut}
    [answer] = answers(lane, [many])
    assert (answer.status, answer.code) == (413, "too_large")
    assert f"{SIDE} x {SIDE} pixels" in answer.message
    assert f"21 masks may have {20 * SIDE * SIDE} pixels" in answer.message
    assert answer.body["error"]["field"] == "prompts"
    one, few = answers(lane, [many, {**COMPLEX, "b64img": cut}])
    assert (one.status, few.status) == (422, 422)  # the other request wants it decoded


def test_the_limit_of_the_server_is_named_as_before() -> None:
    request = PromptRequest.model_validate({"b64img": "", "bbox": WHOLE})

    def decode(data: bytes, max_pixels: int, field: str, page: int) -> Any:
        raise TooLarge(f"the limit is {max_pixels}", field)

    with pytest.raises(TooLarge, match=r"the limit is 1000$") as refused:
        decode_for([request], decode, SETTINGS.limits)(b"", 1000, "b64img", 0)
    assert refused.value.field == "b64img"


def test_drawn_masks_are_decoded_within_a_number_of_pixels(
    model: Any, decoder: DecoderProcess
) -> None:
    lane = handler(model, decoder, light={"max_image_pixels": 2 * SIDE * SIDE + 256 * 256})
    drawn = {**COMPLEX, "multimask_output": False, "b64mask": NOISE}
    small = {**drawn, "b64mask": base64_png(np.eye(256, dtype=np.uint8))}
    assert [a.status for a in answers(lane, [drawn, small])] == [200, 200]
    got = answers(lane, [small, drawn, {**drawn, "simplify": 1}])
    assert [answer.status for answer in got] == [200, 200, 421]
    assert "0 more" in got[2].message
    assert got[2].body["error"]["field"] == "b64mask"


def masks_of(low_res_mask: Any, side: int) -> list[Compact]:
    embedding = Embedding(None, (1024, 1024), (side, side))  # type: ignore[arg-type]
    mask = FullSize(embedding).mask(low_res_mask.astype(np.float32))
    return [CompactPromptMask(mask, (side, side), 1.0, 0)]


def test_a_complex_mask_is_refused_before_it_is_made() -> None:
    """Its logits tell the work: all pixels of the picture lie along its outline."""
    noise = masks_of(np.random.default_rng(0).standard_normal((256, 256)), 10_000)
    disc = masks_of(50 - np.hypot(*(np.indices((256, 256)) - 128)), 10_000)
    assert seconds_of_mask(noise[0]) > 1 > 10 * seconds_of_mask(disc[0])
    budget = OutlineBudget(SETTINGS.limits, SETTINGS.light)
    with budget.request(disc):
        pass
    with pytest.raises(Heavy), budget.request(noise):
        pytest.fail("the block is not entered")
    with OutlineBudget(SETTINGS.limits, None).request(noise):
        pass


def test_the_time_is_measured() -> None:
    """An estimate that is too low does not go on being too low."""
    light = SETTINGS.light.model_copy(update={"masks_s": 0.05, "batch_masks_s": 0.07})
    budget = OutlineBudget(SETTINGS.limits, light)

    def work(seconds: float) -> None:
        end = time.thread_time() + seconds
        while time.thread_time() < end:
            pass

    with budget.request([]) as allow:
        allow(1, 0.001)
        work(0.055)
        with pytest.raises(Heavy):
            allow(1, 0.001)
    with budget.request([]) as allow:
        allow(1, 0.001)
        with pytest.raises(Heavy):
            allow(1, 0.02)
