"""The work of a request is bounded before it is done, and a click waits for no heavy request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import chain, repeat
from typing import Any

import numpy as np
import pybase64
import pytest

from samserve.errors import TooLarge
from samserve.pictures.decoder_process import DecoderProcess
from samserve.serving import budgets
from samserve.serving.budgets import check_masks, seconds_of_masks
from samserve.serving.forms import to_json
from samserve.serving.requests import PromptRequest
from tests.support.handlers import answers, handler_of
from tests.support.hostile_pictures import interlaced_png, progressive_jpeg
from tests.support.sample_pictures import base64_png, picture
from tests.support.segmenters import segmenter_of
from tests.support.settings import SETTINGS

BOX = [20, 30, 70, 78]
COINS = base64_png(picture("coins"))
LIMITS, LIGHT = SETTINGS.limits, SETTINGS.light
CLICK = {"type": "vit_t", "bbox": BOX, "b64img": COINS}


@pytest.fixture(scope="module")
def decoder() -> Iterator[DecoderProcess]:
    process = DecoderProcess()
    yield process
    process.close()


@pytest.fixture(scope="module")
def prompt_lane(model: Any, decoder: DecoderProcess) -> Any:
    return handler_of(segmenter_of(model), decoder)


@pytest.fixture(scope="module")
def automask_lane(model: Any, decoder: DecoderProcess) -> Any:
    return handler_of(segmenter_of(model), decoder, "vit_t-automask")


def base64_of(data: bytes) -> str:
    return pybase64.b64encode(data).decode()


def with_settings(handler: Any, **changes: dict[str, Any]) -> Any:
    """Return a handler with other limits."""
    changed = {
        part: getattr(SETTINGS, part).model_copy(update=values) for part, values in changes.items()
    }
    settings = SETTINGS.model_copy(update=changed)
    return handler_of(handler.segmenter, handler.decoder, handler.lane, settings)


SLOW = {"a large picture": interlaced_png, "many scans": lambda: progressive_jpeg(3000, 199)}


@pytest.mark.parametrize("name", SLOW)
def test_a_picture_that_takes_long_goes_to_the_automask_lane(prompt_lane: Any, name: str) -> None:
    handler = with_settings(prompt_lane, light={"decode_s": 0.05})
    heavy = {**CLICK, "b64img": base64_of(SLOW[name]())}
    one, other = answers(handler, [heavy, CLICK])
    assert (one.status, one.code, one.body["error"]["field"]) == (421, "heavy", "b64img")
    assert "automask lane" in one.message
    assert "X-Mode: prompt" in one.message
    assert other.status == 200
    assert len(other.body) == 1


def test_decoding_of_a_batch_is_bounded_together(prompt_lane: Any) -> None:
    """Pictures that are light each are too heavy together."""
    handler = with_settings(prompt_lane, light={"decode_s": 0.05, "batch_decode_s": 0.05})
    slow = [base64_of(interlaced_png(side)) for side in (5000, 5001)]
    statuses = [
        answer.status for answer in answers(handler, [{**CLICK, "b64img": b} for b in slow])
    ]
    assert statuses == [421, 421]


def test_a_damaged_picture_uses_up_the_time_too(prompt_lane: Any) -> None:
    """It is refused after nearly all of it was decoded."""
    pixels = {"max_image_pixels": 10**8}
    handler = with_settings(prompt_lane, light={"decode_s": 5, "batch_decode_s": 0.1, **pixels})
    damaged = [base64_of(interlaced_png(side)[:-3000]) for side in (5000, 5001)]
    got = answers(handler, [{**CLICK, "b64img": text} for text in damaged])
    assert [answer.status for answer in got] == [421, 421]
    handler = with_settings(prompt_lane, light={"decode_s": 5, "batch_decode_s": 10, **pixels})
    got = answers(handler, [{**CLICK, "b64img": text} for text in damaged])
    assert [answer.status for answer in got] == [422, 422]


def test_the_automask_lane_answers_what_is_too_heavy(automask_lane: Any) -> None:
    pixels = np.zeros((3000, 3000), np.uint8)
    pixels[1000:2000, 1000:2000] = 200
    heavy = {**CLICK, "bbox": [1000, 1000, 2000, 2000], "b64img": base64_png(pixels)}
    [answer] = answers(automask_lane, [heavy], [{"x-mode": "prompt"}])
    assert answer.status == 200
    [feature] = answer.body
    assert feature["properties"]["prompt_idx"] == 0


def test_decoding_has_a_limit_in_the_automask_lane_too(automask_lane: Any) -> None:
    handler = with_settings(automask_lane, limits={"max_decode_s": 0.05})
    body = {**CLICK, "b64img": base64_of(interlaced_png())}
    [answer] = answers(handler, [body], [{"X-Mode": "prompt"}])
    assert (answer.status, answer.code) == (422, "invalid_image")
    assert "0.05 s of CPU time" in answer.message


@pytest.mark.parametrize(
    ("lane", "mode", "status"),
    [
        ("vit_t", None, 200),
        ("vit_t", "prompt", 200),
        ("vit_t", "automask", 400),
        ("vit_t", "x" * 5000, 400),
        ("vit_t-automask", "prompt", 200),
        ("vit_t-automask", "Prompt", 400),
        ("vit_t-automask", "", 400),
    ],
)
def test_the_mode_of_a_request(
    prompt_lane: Any, automask_lane: Any, lane: str, mode: str | None, status: int
) -> None:
    handler = prompt_lane if lane == "vit_t" else automask_lane
    [answer] = answers(handler, [CLICK], [{} if mode is None else {"X-Mode": mode}])
    assert answer.status == status
    if status == 400:
        assert len(answer.message) < 300


def test_heavy_masks_leave_the_batch_to_the_clicks(
    prompt_lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cheap ones are answered first, whatever their order."""
    many = {**CLICK, "bbox": None, "prompts": [{"bbox": BOX}] * 200}
    some = {**CLICK, "bbox": None, "prompts": [{"bbox": BOX}] * 60}
    got = answers(prompt_lane, [many, some, CLICK, some])
    assert [answer.status for answer in got] == [421, 200, 200, 421]
    assert got[0].code == "heavy"
    assert f"requests of {LIGHT.masks_s:g} s" in got[0].message
    assert (len(got[1].body), len(got[2].body)) == (60, 1)


def asked(**fields: Any) -> PromptRequest:
    return PromptRequest.model_validate({"b64img": "", **fields})


def test_the_estimate_grows_with_all_that_takes_time() -> None:
    size, box = (1000, 1000), {"bbox": BOX}
    one = seconds_of_masks(asked(**box), size)
    assert one == pytest.approx(budgets.PROMPT_S + 1e6 * budgets.PIXEL_S)
    assert seconds_of_masks(asked(prompts=[box] * 7), size) == pytest.approx(7 * one)
    assert seconds_of_masks(asked(**box), (10_000, 10_000)) > 10 * one
    many = [{"point_coords": [(1.0, 2.0)] * n, "point_labels": [1] * n} for n in (1, 25, 256)]
    few_s, some_s, most_s = (seconds_of_masks(asked(**points), size) for points in many)
    assert one == few_s < some_s < most_s
    assert seconds_of_masks(asked(b64mask="x"), size) > one
    assert seconds_of_masks(asked(**box, multimask_output=True), size) > one


def test_two_clicks_on_the_largest_picture_are_light_together() -> None:
    seconds = seconds_of_masks(asked(bbox=BOX), (10_000, 10_000))
    assert 2 * seconds <= LIGHT.batch_masks_s
    assert seconds <= LIGHT.masks_s


def test_drawn_masks_that_are_too_many_are_not_decoded(prompt_lane: Any) -> None:
    """Their pictures are broken, and nobody notices."""
    drawn = [{"b64mask": base64_of(b"GIF89a")}] * 64
    [answer] = answers(prompt_lane, [{**CLICK, "bbox": None, "prompts": drawn}])
    assert (answer.status, answer.code) == (421, "heavy")


def test_pixels_times_masks_have_a_limit() -> None:
    check_masks(20, False, (10_000, 10_000), LIMITS)
    check_masks(1024, True, (800, 800), LIMITS)
    for prompts, three in ((21, False), (7, True)):
        with pytest.raises(TooLarge, match=f"{LIMITS.max_mask_pixels}") as error:
            check_masks(prompts, three, (10_000, 10_000), LIMITS)
        assert f"{prompts * (3 if three else 1) * 10**8} pixels" in str(error.value)


def test_too_many_masks_are_refused_before_they_are_made(
    automask_lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = with_settings(automask_lane, limits={"max_mask_pixels": 303 * 384 * 5})
    boxes = [{"bbox": BOX}] * 6
    bodies = [{**CLICK, "bbox": None, "prompts": boxes[:n]} for n in (5, 6)]
    got = [answers(handler, [body], [{"X-Mode": "prompt"}])[0] for body in bodies]
    assert [answer.status for answer in got] == [200, 413]
    assert got[1].body["error"]["field"] == "prompts"
    assert "384 x 303 pixels" in got[1].message
    assert f"6 masks may have {303 * 384 * 5} pixels" in got[1].message
    embedded = handler.segmenter.embed(picture("coins"))  # as a known picture: no header is read
    monkeypatch.setattr(handler.segmenter, "embed_file", lambda picture: embedded)
    [known] = answers(handler, [bodies[1]], [{"X-Mode": "prompt"}])
    assert known.status == 413
    assert "6 masks of 384x303 pixels" in known.message


@pytest.mark.parametrize("form", ["features", "feature_collection", "coco_rle"])
def test_an_answer_has_a_limit(prompt_lane: Any, form: str) -> None:
    handler = with_settings(prompt_lane, limits={"max_answer_bytes": 2000})
    many = {**CLICK, "bbox": None, "output_format": form, "prompts": [{"bbox": BOX}] * 40}
    one, other = answers(handler, [many, {**CLICK, "simplify": 5}])
    assert (one.status, one.code) == (413, "too_large")
    assert "2000 bytes" in one.message
    assert other.status == 200


def test_a_request_whose_deadline_has_passed_is_not_computed(
    prompt_lane: Any, automask_lane: Any
) -> None:
    now = time.time()
    late, awaited = {"X-Deadline": f"{now - 3:.3f}"}, {"x-deadline": str(now + 60)}
    embeddings = prompt_lane.segmenter.model.embeddings
    before = sum(embeddings.found.values())
    [answer] = answers(prompt_lane, [CLICK], [late])
    assert (answer.status, answer.code) == (504, "timeout")
    assert sum(embeddings.found.values()) == before
    got = answers(prompt_lane, [CLICK, CLICK, CLICK], [late, awaited, {}])
    assert [answer.status for answer in got] == [504, 200, 200]
    [answer] = answers(automask_lane, [{"b64img": COINS}], [late])
    assert answer.status == 504


@pytest.mark.parametrize("text", ["", "soon", "nan", "inf", "-inf", "1e999", "0x10", "9" * 5000])
def test_a_malformed_deadline_is_refused(prompt_lane: Any, text: str) -> None:
    [answer] = answers(prompt_lane, [CLICK], [{"X-Deadline": text}])
    assert answer.status == 400
    assert "X-Deadline" in answer.message
    assert len(answer.message) < 250


def test_a_deadline_that_passes_between_the_steps(
    prompt_lane: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the embedding, and between two masks."""
    deadline = {"X-Deadline": str(time.time() + 3600)}
    boxes = {**CLICK, "bbox": None, "prompts": [{"bbox": BOX}] * 3}
    now = time.time()
    for calls in range(6):
        clock = chain([now] * calls, repeat(now + 7200))
        monkeypatch.setattr("samserve.serving.rows.time.time", partial(next, clock))
        [answer] = answers(prompt_lane, [boxes], [deadline])
        assert (answer.status, answer.code) == (504, "timeout"), calls


@pytest.mark.parametrize("field", ["b64img", "b64mask"])
def test_a_broken_picture_is_named_by_its_field(prompt_lane: Any, field: str) -> None:
    [answer] = answers(prompt_lane, [{**CLICK, field: base64_of(b"GIF89a")}])
    assert answer.status == 422
    assert answer.body["error"]["field"] == field


def test_a_broken_mask_of_a_form_is_named_by_its_part(prompt_lane: Any) -> None:
    """The gateway sends the form as JSON, so the part's name has to come along."""
    parts = {"image": pybase64.b64decode(COINS), "bbox": json.dumps(BOX).encode()}
    for mask in (b"GIF89a", pybase64.b64decode(COINS)[:-99]):
        body, _ = to_json({**parts, "mask": mask})
        [answer] = answers(prompt_lane, [{**json.loads(body), "b64img": COINS}])
        assert answer.status == 422
        assert answer.body["error"]["field"] == "mask"
    body, _ = to_json({**parts, "mask": pybase64.b64decode(COINS)})
    [answer] = answers(prompt_lane, [{**json.loads(body), "b64img": COINS}])
    assert answer.status == 200


@pytest.mark.parametrize("field", ["type", "checkpoint_url", "output_format"])
def test_an_error_repeats_little_of_what_was_sent(prompt_lane: Any, field: str) -> None:
    [answer] = answers(prompt_lane, [{**CLICK, field: "x" * 100_000}])
    assert 400 <= answer.status < 500
    assert field in answer.message
    assert "x" * 101 not in answer.message
    assert len(answer.message) < 400
