"""What may be asked: samapi's defaults, its quirks, and what depends on the image's size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samserve.errors import InvalidField, NotFound
from samserve.requests import AutomaskRequest, OutputType, PromptRequest, RoutedRequest

WEIGHTS = {"name": "default", "url": "https://example.org/mobile_sam.pt"}


def prompt(**fields: Any) -> PromptRequest:
    return PromptRequest.parse(json.dumps({"b64img": "x", **fields}).encode())


def automask(**fields: Any) -> AutomaskRequest:
    return AutomaskRequest.parse(json.dumps({"b64img": "x", **fields}).encode())


def test_automask_defaults_are_segment_anythings() -> None:
    assert automask().model_dump() == {
        "type": "vit_h",
        "b64img": "x",
        "checkpoint_url": None,
        "points_per_side": 32,
        "points_per_batch": 64,
        "pred_iou_thresh": 0.88,
        "stability_score_thresh": 0.95,
        "stability_score_offset": 1.0,
        "box_nms_thresh": 0.7,
        "crop_n_layers": 0,
        "crop_nms_thresh": 0.7,
        "crop_overlap_ratio": 512 / 1500,
        "crop_n_points_downscale_factor": 1,
        "min_mask_region_area": 0,
        "output_type": OutputType.BEST_QUALITY,
        "include_image_edge": True,
    }


@pytest.mark.parametrize("choice", OutputType)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_output_type_in_any_letter_case(choice: OutputType, spell: Any) -> None:
    assert automask(output_type=spell(choice.value)).output_type is choice


def test_a_whole_number_may_have_a_decimal_point() -> None:
    assert automask(points_per_side=8.0).points_per_side == 8


def test_null_is_absent_where_absent_is_allowed() -> None:
    assert prompt(bbox=[1, 2, 3, 4], prompts=None, checkpoint_url=None).boxes(9, 9) == [
        (1, 2, 3, 4)
    ]


def test_routing_reads_the_type_alone() -> None:
    assert RoutedRequest.parse(b'{"b64img": 7, "type": "vit_b"}').type == "vit_b"
    assert RoutedRequest.parse(b'{"prompts": [{"type": "vit_b"}]}').type == "vit_h"
    # as the worker's own parser reads it: the last one counts
    assert RoutedRequest.parse(b'{"type": "vit_b", "type": "vit_t"}').type == "vit_t"


def test_prompts_keep_their_order() -> None:
    boxes = [(5, 5, 9, 9), (1, 1, 4, 4)]
    assert prompt(prompts=[{"bbox": list(box)} for box in boxes]).boxes(10, 10) == boxes


@pytest.mark.parametrize(
    ("box", "inside"),
    [
        ([0, 0, 100, 50], True),
        ([-5, -5, 105, 55], True),
        ([99.5, 49.5, 200, 200], True),
        ([100, 0, 120, 50], False),
        ([0, 50, 100, 60], False),
        ([-20, 0, 0, 50], False),
        ([0, -20, 100, 0], False),
    ],
    ids=str,
)
def test_a_box_must_meet_the_image(box: list[float], inside: bool) -> None:
    """100 pixels wide, 50 high."""
    if inside:
        assert prompt(bbox=box).boxes(50, 100) == [tuple(box)]
    else:
        with pytest.raises(InvalidField, match="outside the 100x50 image"):
            prompt(bbox=box).boxes(50, 100)


def test_weights_are_named_or_refused() -> None:
    for wanted in (None, *WEIGHTS.values()):
        prompt(type="vit_t", checkpoint_url=wanted).check_weights("vit_t", WEIGHTS)
    with pytest.raises(NotFound, match="default"):
        prompt(checkpoint_url="other").check_weights("vit_t", WEIGHTS)


def test_a_body_without_type_is_for_whoever_gets_it() -> None:
    prompt().check_weights("vit_t", WEIGHTS)
    with pytest.raises(NotFound, match="vit_t is"):
        prompt(type="vit_h").check_weights("vit_t", WEIGHTS)


def test_work_is_counted_over_all_crops() -> None:
    request = automask(points_per_side=8, crop_n_layers=2, crop_n_points_downscale_factor=2)
    assert request.points_a_side() == [8, 4, 2]
    request.check_work(64 + 4 * 16 + 16 * 4)
    with pytest.raises(InvalidField, match=r"192 points.* limit is 191"):
        request.check_work(191)
