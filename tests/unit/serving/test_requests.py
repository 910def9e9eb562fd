"""What may be asked: samapi's defaults, its quirks, and what depends on the image's size."""

from __future__ import annotations

import json
from typing import Any

import pytest

from samserve.errors import InvalidField, NotFound
from samserve.model_types import MODEL_TYPES
from samserve.parameters import OutputType
from samserve.serving.requests import AutomaskRequest, PromptRequest, RoutedRequest

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
        "page": 0,
        "simplify": 0,
        "output_format": None,
        "strict": False,
        "points_per_side": 32,
        "points_per_batch": 64,
        "pred_iou_thresh": None,  # the default of the loaded network's family
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
        "tile_size": None,
        "overlap": None,
        "region": None,
        "min_area": None,
        "max_area": None,
        "timeout_s": None,
    }


@pytest.mark.parametrize("page", [-1, 0.5, "1", None, True, 2**31, 2**70])
def test_what_is_no_page(page: Any) -> None:
    for model in (PromptRequest, AutomaskRequest):
        with pytest.raises(InvalidField) as refused:
            model.parse(json.dumps({"b64img": "x", "page": page}).encode())
        assert refused.value.field == "page"


def test_a_page() -> None:
    assert automask(page=7).page == 7
    assert automask(page=7.0).page == 7


def test_pred_iou_thresh_is_the_model_types_own_if_it_is_absent() -> None:
    for request in (automask(), automask(pred_iou_thresh=None)):
        assert request.pred_iou_thresh is None
        assert request.with_defaults("samapi").pred_iou_thresh == 0.88
    for sent in (0, 0.5, 0.88):
        request = automask(pred_iou_thresh=sent)
        assert request.pred_iou_thresh == sent
        assert request.with_defaults("samapi").pred_iou_thresh == sent


@pytest.mark.parametrize("choice", OutputType)
@pytest.mark.parametrize("spell", [str, str.lower, str.upper])
def test_output_type_in_any_letter_case(choice: OutputType, spell: Any) -> None:
    assert automask(output_type=spell(choice.value)).output_type is choice


def test_samapis_defaults_are_for_what_is_left_open() -> None:
    assert automask().with_defaults("segment-anything") == automask()
    changed = automask().with_defaults("samapi")
    assert changed.output_type is OutputType.SINGLE_MASK
    assert changed.include_image_edge is False
    assert changed.pred_iou_thresh == 0.88  # for SAM 2, too
    assert automask(pred_iou_thresh=None).with_defaults("samapi").pred_iou_thresh == 0.88
    changed = changed.model_copy(update={"pred_iou_thresh": None})
    assert changed.model_copy(
        update={"output_type": OutputType.BEST_QUALITY, "include_image_edge": True}
    ) == automask()  # fmt: skip
    sent: dict[str, Any] = {
        "output_type": "Multi-mask (all)", "include_image_edge": True, "pred_iou_thresh": 0.8
    }  # fmt: skip
    for name, value in sent.items():
        kept = automask(**{name: value})
        assert getattr(kept.with_defaults("samapi"), name) == getattr(kept, name)
    assert automask(**sent).with_defaults("samapi") == automask(**sent)


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_n_points_downscale_factor": 0},
        {"crop_n_points_downscale_factor": 0.0, "crop_n_layers": 0.0},
        {"crop_n_points_downscale_factor": -1},
        {"crop_n_points_downscale_factor": 2**31},
        {"crop_overlap_ratio": 1.5},
        {"crop_overlap_ratio": -0.1},
    ],
)
def test_without_crop_layers_their_settings_do_not_matter(fields: dict[str, Any]) -> None:
    request = automask(points_per_side=8, **fields)
    assert request.points_a_side() == [8]
    request.check_work(64, 60)
    with pytest.raises(
        InvalidField, match=r"with crop layers it must be|leaves the last crop"
    ) as refused:
        automask(**{**fields, "crop_n_layers": 1}).points_a_side()
    assert refused.value.field in fields


def test_a_whole_number_may_have_a_decimal_point() -> None:
    assert automask(points_per_side=8.0).points_per_side == 8


EMPTY: dict[str, Any] = {"point_coords": [], "point_labels": [], "bbox": [], "b64mask": ""}


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"bbox": [1, 2, 3, 4], "point_coords": [], "point_labels": []}, ["bbox"]),
        ({"bbox": [1, 2, 3, 4], "point_labels": []}, ["bbox"]),
        ({"bbox": [1, 2, 3, 4], "b64mask": "", "prompts": []}, ["bbox"]),
        (
            {"bbox": [], "point_coords": [[1, 2]], "point_labels": [1]},
            ["point_coords", "point_labels"],
        ),
        ({"b64mask": "x", "bbox": [], "point_coords": None, "checkpoint_url": ""}, ["b64mask"]),
    ],
)
def test_empty_is_absent(fields: dict[str, Any], given: list[str]) -> None:
    asked = prompt(**fields)
    [(path, one)] = asked.each_prompt()
    assert (path, one.present(), asked.checkpoint_url) == ("", given, None)
    if "prompts" not in fields:
        nested = {name: value for name, value in fields.items() if name != "checkpoint_url"}
        [(path, one)] = prompt(prompts=[nested], **EMPTY).each_prompt()
        assert (path, one.present()) == ("prompts.0.", given)


def test_null_is_absent_where_absent_is_allowed() -> None:
    nothing = dict.fromkeys(["prompts", "point_coords", "point_labels", "b64mask"])
    [(path, asked)] = prompt(bbox=[1, 2, 3, 4], checkpoint_url=None, **nothing).each_prompt()
    assert (path, asked.present(), asked.bbox) == ("", ["bbox"], (1, 2, 3, 4))


def test_routing_reads_the_type_alone() -> None:
    assert RoutedRequest.parse(b'{"b64img": 7, "type": "vit_b"}').type == "vit_b"
    assert RoutedRequest.parse(b'{"prompts": [{"type": "vit_b"}]}').type == "vit_h"
    # as the worker's own parser reads it: the last one counts
    assert RoutedRequest.parse(b'{"type": "vit_b", "type": "vit_t"}').type == "vit_t"


def test_prompts_keep_their_order() -> None:
    boxes = [(5, 5, 9, 9), (1, 1, 4, 4)]
    asked = prompt(prompts=[{"bbox": list(box)} for box in boxes]).each_prompt()
    assert [(path, each.bbox) for path, each in asked] == [
        ("prompts.0.", boxes[0]),
        ("prompts.1.", boxes[1]),
    ]


POINT: dict[str, Any] = {"point_coords": [[1, 2]], "point_labels": [1]}
BOX: dict[str, Any] = {"bbox": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "bbox"),
        (EMPTY, "bbox"),
        ({"point_coords": [], "point_labels": []}, "bbox"),
        ({"b64mask": ""}, "bbox"),
        ({"prompts": []}, "prompts"),
        ({"prompts": [EMPTY]}, "prompts.0.bbox"),
        ({"point_coords": [], "point_labels": [1]}, "point_labels"),
        ({"prompts": [BOX, {}]}, "prompts.1.bbox"),
        ({"prompts": [BOX], **BOX}, "prompts"),
        ({"prompts": [BOX], **POINT}, "prompts"),
        ({"prompts": [BOX], "b64mask": "x"}, "prompts"),
        ({"point_coords": [[1, 2]]}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": []}, "point_labels"),
        ({"point_coords": [[1, 2]], "point_labels": [1, 0]}, "point_labels"),
        ({**BOX, "point_labels": [1]}, "point_labels"),
        ({"prompts": [BOX, {"point_coords": [[1, 2]]}]}, "prompts.1.point_labels"),
        (
            {"prompts": [{"point_coords": [[1, 2]] * 256, "point_labels": [1] * 256}] * 9},
            "prompts",
        ),
        ({"prompts": [{"b64mask": "x"}] * 65}, "prompts"),
    ],
)
def test_what_is_no_prompt(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        prompt(**fields).each_prompt()
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"point_coords": ""}, "point_coords"),
        ({"point_coords": [[]], "point_labels": [1]}, "point_coords.0.0"),
        ({"bbox": {}}, "bbox"),
        ({"bbox": ""}, "bbox"),
        ({"bbox": [1, "2", 3, 4]}, "bbox.1"),
        ({"bbox": [1, True, 3, 4]}, "bbox.1"),
        ({"point_coords": [[1]], "point_labels": [1]}, "point_coords.0.1"),
        ({"point_coords": [[1, 2, 3]], "point_labels": [1]}, "point_coords.0"),
        ({"point_coords": [1, 2], "point_labels": [1]}, "point_coords.0"),
        ({"point_coords": [[1, 2]], "point_labels": [2]}, "point_labels.0"),
        ({"point_coords": [[1, 2]], "point_labels": [-1]}, "point_labels.0"),
        ({"point_coords": [[1, 2]], "point_labels": [True]}, "point_labels.0"),
        ({"point_coords": [[1, 2]], "point_labels": 1}, "point_labels"),
        ({"point_coords": [[1, 2]] * 257, "point_labels": [1] * 257}, "point_coords"),
    ],
)
def test_what_is_no_point(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        prompt(**fields)
    assert refused.value.field == field


GITHUB = "https://github.com/ChaoningZhang/MobileSAM/raw"
META = "https://dl.fbaipublicfiles.com/segment_anything"
PUBLISHED: dict[str, list[str]] = {
    "vit_t": [
        f"{GITHUB}/master/weights/mobile_sam.pt",
        f" {GITHUB}/master/weights/mobile_sam.pt\n",
        f"{GITHUB}/refs/heads/master/weights/mobile_sam.pt",
        f"{GITHUB.replace('/raw', '/blob')}/master/weights/mobile_sam.pt?raw=true",
        f"{GITHUB.replace('https', 'http')}/HEAD/weights/mobile_sam.pt",
        "https://raw.githubusercontent.com/ChaoningZhang/MobileSAM/master/weights/mobile_sam.pt",
        "https://GitHub.com/chaoningzhang/mobilesam/raw/master/weights/mobile_sam.pt",
    ],
    "vit_b": [f"{META}/sam_vit_b_01ec64.pth", f"{META}/sam_vit_b_01ec64.pth".replace("s:", ":")],
    "vit_l": [f"{META}/sam_vit_l_0b3195.pth"],
    "vit_h": [f"{META}/sam_vit_h_4b8939.pth", f"{META}/sam_vit_h_4b8939.pth?download=1"],
    "sam2_t": [f"{META}_2/092824/sam2.1_hiera_tiny.pt"],
    "sam2_s": [f"{META}_2/092824/sam2.1_hiera_small.pt"],
    "sam2_bp": [f"{META}_2/092824/sam2.1_hiera_base_plus.pt"],
    "sam2_l": [f"{META}_2/092824/sam2.1_hiera_large.pt?download=1"],
}  # fmt: skip


@pytest.mark.parametrize("model_type", MODEL_TYPES)
def test_samapis_own_addresses_mean_the_types_own_weights(model_type: str) -> None:
    for address in [*PUBLISHED[model_type], MODEL_TYPES[model_type].url]:
        prompt(checkpoint_url=address).check_weights(model_type, WEIGHTS)
        # Weights of another name are not those, wherever they were registered from.
        with pytest.raises(NotFound):
            prompt(checkpoint_url=address).check_weights(model_type, {**WEIGHTS, "name": "mine"})
        own = {"name": "mine", "url": address}
        prompt(checkpoint_url=address).check_weights(model_type, own)
        for other in MODEL_TYPES.keys() - {model_type}:
            with pytest.raises(NotFound):
                prompt(checkpoint_url=address).check_weights(other, WEIGHTS)


def test_the_entry_of_a_type_that_was_not_loaded_means_its_own_weights_later() -> None:
    """QuPath keeps its list of weights, and with it this address, while the server restarts."""
    prompt(type="vit_t", checkpoint_url="not-loaded:vit_t").check_weights("vit_t", WEIGHTS)
    with pytest.raises(NotFound):
        prompt(checkpoint_url="not-loaded:vit_b").check_weights("vit_t", WEIGHTS)


@pytest.mark.parametrize(
    "address",
    [
        f"{GITHUB}/0123456789/weights/mobile_sam.pt",
        f"{GITHUB.replace('ChaoningZhang', 'somebody')}/master/weights/mobile_sam.pt",
        f"{GITHUB.replace('github.com', 'github.com.evil.example')}/master/weights/mobile_sam.pt",
        f"{GITHUB.replace('github.com', 'githubxcom')}/master/weights/mobile_sam.pt",
        f"https://evil.example/?{GITHUB}/master/weights/mobile_sam.pt",
        f"{GITHUB}/master/weights/mobile_sam.pt/other.pt",
        "mobile_sam.pt",
        # SAM 2.0, which is not SAM 2.1
        f"{META}_2/072824/sam2_hiera_tiny.pt",
        f"{META}_2/092824/sam2_hiera_tiny.pt",
        f"{META}_2/072824/sam2.1_hiera_tiny.pt",
    ],
)
def test_no_other_address_means_them(address: str) -> None:
    for model_type in ("vit_t", "sam2_t"):
        with pytest.raises(NotFound):
            prompt(checkpoint_url=address).check_weights(model_type, WEIGHTS)


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
    request.check_work(64 + 4 * 16 + 16 * 4, 60)
    with pytest.raises(InvalidField, match=r"192 points.* limit is 191"):
        request.check_work(191, 60)
    automask(timeout_s=60).check_work(1024, 60)
    with pytest.raises(InvalidField, match=r"timeout_s is 61.* limit is 60"):
        automask(timeout_s=61).check_work(1024, 60)
