"""SAM 2 finds the objects that `sam2.SAM2AutomaticMaskGenerator` finds, with random weights.

Their outlines are noise. So no two boxes of masks would differ if the logits were not shifted down:
`random_weights.lively(sparse=…)`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from samserve.masks.mask import AutoMask
from samserve.segmenter import EmbeddedPicture
from tests.support.geometry import full_frame
from tests.support.sam2_reference import Pair, pair, reference_generator
from tests.support.sample_pictures import picture

pytestmark = pytest.mark.slow

IMAGE = np.ascontiguousarray(picture("astronaut")[:97, :301])

ALL: dict[str, Any] = {
    "points_per_side": 6,
    "pred_iou_thresh": 0.0,
    "stability_score_thresh": 0.0,
    "box_nms_thresh": 1.0,
}
SMALL = {"crop_n_layers": 1, "crop_n_points_downscale_factor": 2, "crop_nms_thresh": 0.8}
PARAMETERS: dict[str, dict[str, Any]] = {
    "all": ALL,
    "distinct": {**ALL, "box_nms_thresh": 0.7},
    "good": {**ALL, "pred_iou_thresh": 0.12, "stability_score_thresh": 0.4},
    "offset": {**ALL, "stability_score_thresh": 0.6, "stability_score_offset": 0.5},
    "crops": {**ALL, **SMALL, "box_nms_thresh": 0.9},
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return pair("sam2_t", tmp_path_factory.mktemp("sam2_t"), sparse=14)


@pytest.fixture(scope="module")
def embedded(both: Pair) -> EmbeddedPicture:
    return both.segmenter.embed(IMAGE)


def expected(both: Pair, **parameters: Any) -> list[dict[str, Any]]:
    generator = reference_generator(both.reference.model, **parameters)
    masks: list[dict[str, Any]] = generator.generate(IMAGE)
    return [mask for mask in masks if mask["area"] > 0]  # an empty mask is no object


def is_same(ours: AutoMask, theirs: dict[str, Any]) -> None:
    assert np.count_nonzero(full_frame(ours, IMAGE) != theirs["segmentation"]) <= 1
    assert ours.predicted_iou == pytest.approx(theirs["predicted_iou"], abs=1e-4)
    assert ours.stability_score == pytest.approx(theirs["stability_score"], abs=1e-3)
    assert ours.box.xywh == pytest.approx(theirs["bbox"], abs=1)
    assert ours.point_coords == pytest.approx(np.array(theirs["point_coords"]), abs=1e-3)


@pytest.mark.parametrize("parameters", PARAMETERS.values(), ids=PARAMETERS.keys())
def test_the_same_masks_in_the_same_order(
    both: Pair, embedded: EmbeddedPicture, parameters: dict[str, Any]
) -> None:
    found = both.segmenter.automask(embedded, **parameters)
    theirs = expected(both, **parameters)
    assert len(found) == len(theirs)
    assert len({mask.box for mask in found}) > 3, "the masks are trivial"
    for pair_of_masks in zip(found, theirs, strict=True):
        is_same(*pair_of_masks)


@pytest.mark.parametrize("name", ["all", "good"])
def test_a_single_mask_for_each_point(both: Pair, embedded: EmbeddedPicture, name: str) -> None:
    """Its masks are the reference's; of duplicates the smallest stays, as with SAM 1."""
    parameters = PARAMETERS[name]
    found = both.segmenter.automask(embedded, output_type="Single mask", **parameters)
    theirs = expected(both, multimask_output=False, **parameters)
    assert len(found) == len(theirs) >= 3
    assert [mask.area for mask in found] == sorted(mask.area for mask in found)

    def place(mask: Any) -> tuple[float, ...]:
        return tuple(np.round(mask["point_coords"][0], 2))

    ordered = sorted(theirs, key=place)
    ours = sorted(found, key=lambda mask: tuple(np.round(mask.point_coords[0], 2)))
    for pair_of_masks in zip(ours, ordered, strict=True):
        is_same(*pair_of_masks)
