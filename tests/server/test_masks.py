"""The gateway and TorchServe answer the reference's masks, as GeoJSON that restores each pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import shapely.geometry
from mobile_sam import SamAutomaticMaskGenerator, SamPredictor

from tests.support.geometry import rasterise, same_mask
from tests.support.sample_pictures import base64_png, picture

BOXES: dict[str, list[list[float]]] = {
    "coins": [[20, 30, 70, 78], [302, 154, 382, 220], [140.5, 236.25, 205, 290]],
    "immunohistochemistry": [[248, 303, 385, 510], [0, 0, 260, 262]],
    "astronaut": [[120, 0, 330, 512]],
    "rocket": [[300, 60, 360, 400]],
}
CASES = [(name, box) for name, boxes in BOXES.items() for box in boxes]


def is_the_mask(feature: dict[str, Any], mask: Any) -> None:
    """Assert that the outline is valid and encloses the pixels of the mask."""
    assert shapely.geometry.shape(feature["geometry"]).is_valid
    assert same_mask(rasterise(feature["geometry"], *mask.shape), mask)


@pytest.mark.parametrize(("name", "box"), CASES, ids=str)
def test_a_box_gives_the_references_mask(
    door: Any, reference_masks: Any, name: str, box: list[float]
) -> None:
    answer = door("prompt", {"type": "vit_t", "bbox": box, "b64img": base64_png(picture(name))})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    [feature] = answer.json()
    masks, quality = reference_masks(name, box)
    is_the_mask(feature, masks[0])
    assert feature["type"] == "Feature"
    assert feature["properties"] == {
        "object_idx": 0,
        "label": "object",
        "quality": pytest.approx(quality[0], abs=1e-4),
        "sam_model": "vit_t",
        "prompt_idx": 0,
    }


def test_prompts_share_an_image(door: Any, reference_masks: Any) -> None:
    boxes = BOXES["coins"]
    body = {
        "type": "vit_t",
        "prompts": [{"bbox": box} for box in boxes],
        "b64img": base64_png(picture("coins")),
    }
    features = door("prompt", body).json()
    assert [f["properties"]["prompt_idx"] for f in features] == [0, 1, 2]
    for feature, box in zip(features, boxes, strict=True):
        is_the_mask(feature, reference_masks("coins", box)[0][0])


def test_multimask_output_gives_three_with_their_own_quality(
    door: Any, reference_masks: Any
) -> None:
    box = BOXES["immunohistochemistry"][0]
    image = base64_png(picture("immunohistochemistry"))
    body = {"type": "vit_t", "bbox": box, "b64img": image, "multimask_output": True}
    features = door("prompt", body).json()
    masks, quality = reference_masks("immunohistochemistry", box, multimask_output=True)
    assert [f["properties"]["quality"] for f in features] == pytest.approx(quality, abs=1e-4)
    assert [f["properties"]["object_idx"] for f in features] == [0, 1, 2]
    for feature, mask in zip(features, masks, strict=True):
        is_the_mask(feature, mask)


def test_points_and_boxes_in_one_request(door: Any, model: Any) -> None:
    """Points as QuPath sends them, background first; then every kind of prompt in one list."""
    image = picture("coins")
    reference = SamPredictor(model)
    reference.set_image(image)
    box, points = BOXES["coins"][0], [[5, 5], [45, 55]]
    drawn = np.zeros((256, 256), np.uint8)  # in the mask prompt's frame: 256 for 384 pixels
    drawn[23:50, 17:44] = 255
    logits = np.where(drawn, 1, -1) * np.log(0.999 / 0.001)
    prompts: list[tuple[dict[str, Any], dict[str, Any]]] = [
        (
            {"point_coords": points, "point_labels": [0, 1]},
            {"point_coords": np.array(points), "point_labels": np.array([0, 1])},
        ),
        (
            {"bbox": box, "point_coords": points, "point_labels": [0, 1]},
            {
                "box": np.array(box),
                "point_coords": np.array(points),
                "point_labels": np.array([0, 1]),
            },
        ),
        ({"bbox": box}, {"box": np.array(box)}),
        (
            {"bbox": box, "b64mask": base64_png(drawn)},
            {"box": np.array(box), "mask_input": logits[None]},
        ),
    ]
    common = {"type": "vit_t", "b64img": base64_png(image)}
    for fields, arguments in prompts:
        [feature] = door("prompt", {**common, **fields}).json()
        masks, quality, _ = reference.predict(**arguments, multimask_output=False)
        is_the_mask(feature, masks[0])
        assert feature["properties"]["quality"] == pytest.approx(quality[0], abs=1e-4)
    together = door("prompt", {**common, "prompts": [fields for fields, _ in prompts]}).json()
    assert [f["properties"]["prompt_idx"] for f in together] == [0, 1, 2, 3]
    for feature, (_, arguments) in zip(together, prompts, strict=True):
        is_the_mask(feature, reference.predict(**arguments, multimask_output=False)[0][0])


def test_automask_gives_the_references_masks(door: Any, model: Any) -> None:
    image = picture("coins")
    reference = SamAutomaticMaskGenerator(model, points_per_side=4).generate(image)
    body = {"type": "vit_t", "points_per_side": 4, "b64img": base64_png(image)}
    features = door("automask", body).json()
    assert len(features) == len(reference) > 3
    for index, (feature, expected) in enumerate(zip(features, reference, strict=True)):
        is_the_mask(feature, expected["segmentation"])
        assert feature["properties"] == {
            "object_idx": index,
            "label": "object",
            "quality": pytest.approx(expected["predicted_iou"], abs=1e-4),
            "sam_model": "vit_t",
            "stability_score": pytest.approx(expected["stability_score"], abs=1e-4),
            "area": expected["area"],
            "bbox": expected["bbox"],
            "point_coords": expected["point_coords"],
        }


def test_nothing_found_is_an_empty_array(door: Any) -> None:
    body = {"points_per_side": 1, "pred_iou_thresh": 1.0, "type": "vit_t"}
    answer = door("automask", {**body, "b64img": base64_png(picture("coins"))})
    assert (answer.status_code, answer.content) == (200, b"[]")


def test_what_qupath_sends(server: Any, reference_masks: Any) -> None:
    """The extension's bodies, byte for byte, with its headers."""
    headers = {"Content-Type": "application/json; charset=utf-8", "Accept": "application/json"}
    image = base64_png(picture("coins"))
    prompt = (
        f'{{"type":"vit_t","bbox":[20,30,70,78],"b64img":"{image}","multimask_output":false,'
        '"checkpoint_url":"default"}'
    )
    answer = server.http.post(f"{server.options.url}/sam/", data=prompt.encode(), headers=headers)
    [feature] = answer.json()
    is_the_mask(feature, reference_masks("coins", [20, 30, 70, 78])[0][0])

    automask = (
        f'{{"type":"vit_t","b64img":"{image}","points_per_side":3,"points_per_batch":64,'
        '"pred_iou_thresh":0.88,"stability_score_thresh":0.95,"stability_score_offset":1.0,'
        '"box_nms_thresh":0.7,"crop_n_layers":0,"crop_nms_thresh":0.7,'
        '"crop_overlap_ratio":0.3413333333333333,"crop_n_points_downscale_factor":1,'
        '"min_mask_region_area":0,"output_type":"Single Mask","include_image_edge":true}'
    )
    answer = server.http.post(
        f"{server.options.url}/sam/automask/", data=automask.encode(), headers=headers
    )
    assert answer.status_code == 200, answer.text
    for index, feature in enumerate(answer.json()):
        assert feature["properties"]["object_idx"] == index
        assert isinstance(feature["properties"]["quality"], float)


def test_boxes_reaching_over_the_edge_are_taken(door: Any, reference_masks: Any) -> None:
    box = [-3, -2, 387, 305]
    body = {"type": "vit_t", "bbox": box, "b64img": base64_png(picture("coins"))}
    [feature] = door("prompt", body).json()
    is_the_mask(feature, reference_masks("coins", box)[0][0])
