"""Automask against the reference's own generator, field by field, and samapi's additions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mobile_sam import SamAutomaticMaskGenerator
from numpy.typing import NDArray

from samserve import automask
from samserve.crops import IMAGE_EDGE_TOLERANCE
from samserve.masks.mask import AutoMask
from samserve.network.decoder import Decoder
from samserve.pictures.picture import Picture
from samserve.serving.requests import AutomaskRequest
from tests.support.geometry import full_frame
from tests.support.sample_pictures import base64_png, picture
from tests.support.segmenters import segmenter_of


def generate(model: Any, image: NDArray[np.uint8], **fields: Any) -> list[AutoMask]:
    segmenter, sent = segmenter_of(model), Picture(base64_png(image), max_pixels=10**7)
    request = AutomaskRequest.model_validate({"b64img": "", **fields})
    known = segmenter.model.embeddings.of_picture(sent).image
    found = automask.generate(segmenter.model, known, lambda: sent.pixels, request)
    return [mask.unpacked() for mask in found]


def keys(masks: list[AutoMask]) -> set[tuple[Any, ...]]:
    return {(m.box, m.area, m.predicted_iou) for m in masks}


PARAMETERS: dict[str, tuple[str, dict[str, Any]]] = {
    "a small batch": ("coins", {"points_per_side": 4, "points_per_batch": 5}),
    "strict": ("coffee", {"points_per_side": 4, "pred_iou_thresh": 0.95}),
    "all masks": (
        "immunohistochemistry",
        {
            "points_per_side": 2,
            "pred_iou_thresh": 0.0,
            "stability_score_thresh": 0.0,
            "box_nms_thresh": 1.0,
        },
    ),
    "crops": (
        "astronaut",
        {
            "points_per_side": 4,
            "crop_n_layers": 1,
            "crop_n_points_downscale_factor": 2,
            "crop_nms_thresh": 0.5,
        },
    ),
    "small regions": (
        "coins",
        {"points_per_side": 4, "min_mask_region_area": 120, "stability_score_thresh": 0.8},
    ),
    "offset": ("coins", {"points_per_side": 3, "stability_score_offset": 3.0}),
}


@pytest.mark.parametrize(("name", "fields"), PARAMETERS.values(), ids=PARAMETERS.keys())
def test_equal_to_the_reference(model: Any, name: str, fields: dict[str, Any]) -> None:
    image = picture(name)
    expected = SamAutomaticMaskGenerator(model, **fields).generate(image)
    found = generate(model, image, **fields)
    expected = [e for e in expected if e["area"] > 0]  # an empty mask is no object
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        # Rounding, at the threshold: a pixel here or there.
        differing = np.count_nonzero(full_frame(ours, image) != theirs["segmentation"])
        assert differing <= 2 + 1e-5 * theirs["area"]
        assert ours.predicted_iou == pytest.approx(theirs["predicted_iou"], abs=1e-5)
        assert ours.stability_score == pytest.approx(theirs["stability_score"], abs=1e-3)
        assert np.abs(np.subtract(ours.box.xywh, theirs["bbox"])).max() <= 1
        assert ours.point_coords == theirs["point_coords"]
        assert abs(ours.area - theirs["area"]) <= differing


def test_output_types_choose_by_samapis_rules(model: Any) -> None:
    image = picture("coins")
    fields = {"points_per_side": 3, "pred_iou_thresh": 0.7, "stability_score_thresh": 0.7}
    found = {
        kind: generate(model, image, output_type=f"Multi-mask ({kind})", **fields)
        for kind in ("best quality", "largest", "smallest", "all")
    }
    found["absent"] = generate(model, image, **fields)
    assert keys(found["absent"]) == keys(found["best quality"])
    for kind in ("best quality", "largest", "smallest"):
        assert keys(found[kind]) < keys(found["all"])
    areas = {kind: [m.area for m in masks] for kind, masks in found.items()}
    assert areas["largest"] == sorted(areas["all"], reverse=True)[:1] + areas["largest"][1:]
    assert areas["largest"] == sorted(areas["largest"], reverse=True)
    assert areas["smallest"] == sorted(areas["smallest"])
    assert areas["smallest"][0] == min(areas["all"])


def test_single_mask_is_one_a_point(model: Any) -> None:
    image = picture("coins")
    fields = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}
    found = generate(model, image, output_type="Single mask", box_nms_thresh=1.0, **fields)
    assert 1 <= len(found) <= 4
    assert len({tuple(map(tuple, m.point_coords)) for m in found}) == len(found)


def test_without_the_image_edge_the_background_goes(model: Any) -> None:
    image = picture("coins")
    height, width = image.shape[:2]
    kept = generate(model, image, points_per_side=4)
    fewer = generate(model, image, points_per_side=4, include_image_edge=False)

    def spans(m: AutoMask) -> bool:
        x, y, w, h = m.box.xywh
        distances = (x, y, width - x - w, height - y - h)
        return all(side <= IMAGE_EDGE_TOLERANCE for side in distances)

    assert any(spans(m) for m in kept)
    assert not any(spans(m) for m in fewer)
    assert {m.box for m in kept if not spans(m)} <= {m.box for m in fewer}


@pytest.mark.parametrize(
    ("points_per_batch", "sizes"), [(10_000, [16, 16, 4]), (7, [7, 7, 7, 7, 7, 1])]
)
def test_points_per_batch_is_an_upper_bound(
    model: Any, monkeypatch: pytest.MonkeyPatch, points_per_batch: int, sizes: list[int]
) -> None:
    """And a client's 10,000 must not become our memory."""
    decoded: list[int] = []
    original = Decoder.decode

    def decode(self: Decoder, image: Any, *, points: Any) -> Any:
        decoded.append(len(points[0]))
        return original(self, image, points=points)

    monkeypatch.setattr(Decoder, "decode", decode)
    generate(model, picture("coins"), points_per_side=6, points_per_batch=points_per_batch)
    assert sorted(decoded, reverse=True) == sizes
    decoded.clear()
    generate(model, picture("coins"), points_per_side=4, points_per_batch=points_per_batch)
    assert sorted(decoded, reverse=True) == ([8, 8] if points_per_batch > 8 else [7, 7, 2])
