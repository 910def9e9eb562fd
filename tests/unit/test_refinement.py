"""A click refines the mask of the one before, as `SamPredictor` does with `mask_input`."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from mobile_sam import SamPredictor
from numpy.typing import NDArray

from samserve.pictures.decoder_process import DecoderProcess
from samserve.serving import budgets
from samserve.serving.requests import MAX_MASKS, PromptRequest
from tests.support.geometry import rasterise, same_mask
from tests.support.handlers import answers, handler_of
from tests.support.sample_pictures import base64_png, picture
from tests.support.segmenters import segmenter_of

PICTURES = {
    "landscape": picture("coins"),
    "portrait": np.ascontiguousarray(picture("coffee").transpose(1, 0, 2)),
    "larger than the network's input": np.tile(picture("astronaut"), (3, 4, 1)),
    "a strip": picture("rocket")[200:240],
    "tiny": picture("chelsea")[100:116, 150:170],
}


@pytest.fixture(scope="module")
def lane(model: Any) -> Iterator[Any]:
    process = DecoderProcess()
    yield handler_of(segmenter_of(model), process)
    process.close()


def logits_of(written: dict[str, Any]) -> NDArray[np.float32]:
    """Read `low_res_logits` as a stranger would who knows the documentation only."""
    assert (written["shape"], written["dtype"]) == ([256, 256], "float16")
    data = np.frombuffer(base64.b64decode(written["data"]), "<f2")
    return data.reshape(written["shape"]).astype(np.float32)


def asked(lane: Any, image: NDArray[np.uint8], **fields: Any) -> list[dict[str, Any]]:
    [answered] = answers(lane, [{"type": "vit_t", "b64img": base64_png(image), **fields}])
    assert answered.status == 200, answered.body
    features: list[dict[str, Any]] = answered.body
    return features


def points(image: NDArray[np.uint8], *shares: tuple[float, float]) -> NDArray[np.float64]:
    return np.array(shares) * image.shape[1::-1]


def is_same(feature: dict[str, Any], mask: NDArray[np.bool_], iou: float) -> None:
    assert same_mask(rasterise(feature["geometry"], *mask.shape), mask)
    assert feature["properties"]["quality"] == pytest.approx(float(iou), abs=1e-4)


@pytest.mark.parametrize("multimask_output", [False, True])
@pytest.mark.parametrize("image", PICTURES.values(), ids=PICTURES.keys())
def test_two_clicks_as_the_reference(
    lane: Any, model: Any, image: NDArray[np.uint8], multimask_output: bool
) -> None:
    reference = SamPredictor(model)
    reference.set_image(image)
    one = points(image, (0.45, 0.5))
    two = points(image, (0.45, 0.5), (0.2, 0.3))
    first = {"point_coords": one.tolist(), "point_labels": [1], "return_logits": True}
    features = asked(lane, image, **first, multimask_output=multimask_output)
    masks, ious, low_res = reference.predict(one, np.array([1]), multimask_output=multimask_output)
    shown = [index for index, mask in enumerate(masks) if mask.any()]
    for feature, index in zip(features, shown, strict=True):
        written = feature["properties"]["low_res_logits"]
        logits = logits_of(written)
        np.testing.assert_allclose(logits, low_res[index], rtol=1e-3, atol=2e-3)
        is_same(feature, masks[index], ious[index])

        again = {"point_coords": two.tolist(), "point_labels": [1, 0], "mask_input": written}
        refined, quality, last = reference.predict(
            two, np.array([1, 0]), mask_input=logits[None], multimask_output=False
        )
        answered = asked(lane, image, **again, return_logits=True)
        assert len(answered) == int(refined.any())
        for refinement in answered:
            is_same(refinement, refined[0], quality[0])
            third = logits_of(refinement["properties"]["low_res_logits"])
            np.testing.assert_allclose(third, last[0], rtol=1e-3, atol=2e-3)


def test_several_kinds_in_one_batch(lane: Any, model: Any) -> None:
    """Requests with and without logits, and with a mask, share a picture and do not mix."""
    image = PICTURES["landscape"]
    click: dict[str, Any] = {"type": "vit_t", "b64img": base64_png(image)}
    click |= {"point_coords": [[45, 55]], "point_labels": [1]}
    plain, with_logits = answers(lane, [click, {**click, "return_logits": True}])
    [feature], [other] = plain.body, with_logits.body
    written = other["properties"].pop("low_res_logits")
    assert "low_res_logits" not in feature["properties"]
    assert same_mask(*(rasterise(f["geometry"], *image.shape[:2]) for f in (feature, other)))
    prompts = [{"bbox": [20, 30, 70, 78], "mask_input": written}, {"bbox": [20, 30, 70, 78]}]
    both = asked(lane, image, prompts=prompts, return_logits=True)
    reference = SamPredictor(model)
    reference.set_image(image)
    for feature, mask_input in zip(both, (logits_of(written)[None], None), strict=True):
        masks, ious, _ = reference.predict(
            box=np.array([20, 30, 70, 78]), mask_input=mask_input, multimask_output=False
        )
        is_same(feature, masks[0], ious[0])
    records = asked(
        lane, image, bbox=[20, 30, 70, 78], return_logits=True, output_format="coco_rle"
    )
    np.testing.assert_array_equal(
        logits_of(records[0]["low_res_logits"]),
        logits_of(both[1]["properties"]["low_res_logits"]),
    )


def written(logits: NDArray[Any], **changes: Any) -> dict[str, Any]:
    data = base64.b64encode(logits.astype("<f2").tobytes()).decode()
    return {"shape": [256, 256], "dtype": "float16", "data": data, **changes}


GOOD = np.zeros((256, 256))
NAN, INFINITE = GOOD.copy(), GOOD.copy()
NAN[3, 4], INFINITE[3, 4] = np.nan, -np.inf


@pytest.mark.parametrize(
    ("mask_input", "field"),
    [
        (written(NAN), "mask_input.data"),
        (written(INFINITE), "mask_input.data"),
        (written(GOOD[:255]), "mask_input.data"),
        (written(np.zeros((257, 256))), "mask_input.data"),
        (written(GOOD, data=""), "mask_input.data"),
        (written(GOOD, data="ö"), "mask_input.data"),
        (written(GOOD, data="AAA"), "mask_input.data"),
        (written(GOOD, data=None), "mask_input.data"),
        (written(GOOD, dtype="float32"), "mask_input.dtype"),
        (written(GOOD, dtype=["float16"]), "mask_input.dtype"),
        (written(GOOD, shape=[255, 256]), "mask_input.shape.0"),
        (written(GOOD, shape=[1, 256, 256]), "mask_input.shape"),
        (written(GOOD, shape=[]), "mask_input.shape"),
        ({"data": "AAAA"}, "mask_input.shape"),
        ([[0.0] * 256] * 256, "mask_input"),
        ("logits", "mask_input"),
    ],
)
def test_other_masks_are_refused(lane: Any, mask_input: Any, field: str) -> None:
    click = {"type": "vit_t", "b64img": base64_png(PICTURES["tiny"]), "bbox": [2, 2, 9, 9]}
    one, several = answers(
        lane,
        [{**click, "mask_input": mask_input}, {**click, "bbox": [], "prompts": [
            {"bbox": [2, 2, 9, 9]}, {"bbox": [2, 2, 9, 9], "mask_input": mask_input}]}],
    )  # fmt: skip
    for answered, path in ((one, ""), (several, "prompts.1.")):
        assert (answered.status, answered.code) == (422, "invalid_field")
        assert answered.body["error"]["field"].startswith(path + field)


def test_what_excludes_each_other(lane: Any) -> None:
    click = {"type": "vit_t", "b64img": base64_png(PICTURES["tiny"])}
    both = {"mask_input": written(GOOD), "b64mask": base64_png(np.full((256, 256), 255, np.uint8))}
    boxes = {"prompts": [{"bbox": [2, 2, 9, 9]}] * (MAX_MASKS + 1)}
    masks = {"prompts": [{"mask_input": written(GOOD)}] * (MAX_MASKS + 1)}
    [two_masks, too_many, too_much] = answers(
        lane, [{**click, **both}, {**click, **boxes, "return_logits": True}, {**click, **masks}]
    )
    for answered, field in (
        (two_masks, "mask_input"),
        (too_many, "return_logits"),
        (too_much, "prompts"),
    ):
        assert (answered.status, answered.body["error"]["field"]) == (422, field)
    assert answers(lane, [{**click, **boxes}])[0].status == 200


def test_logits_count_as_the_work_that_they_are() -> None:
    """The original decoder makes them, so that many of them are no work for the prompt lane."""

    def seconds(**fields: Any) -> float:
        request = {"b64img": "", "prompts": [{"bbox": [1, 1, 2, 2], **fields.pop("each", {})}] * 9}
        return budgets.seconds_of_prompts(
            PromptRequest.parse(json.dumps(request | fields).encode())
        )

    drawn = seconds(each={"b64mask": "AAAA"})
    assert seconds(return_logits=True) == seconds(each={"mask_input": written(GOOD)}) == drawn
    assert drawn > 2 * seconds()
