"""samapi's clients are served: the bodies that they send, and the answers as they read them.

The clients are QuPath's SAM extension (0.9.1) and samapi's scripts. The tests repeat the bodies
that they send. `qupath_reads` applies the extension's rules to an answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import requests
import shapely
from shapely.geometry import shape

from tests.support.sample_pictures import base64_png, picture

VIEW = base64_png(picture("coins"))  # PNG of the view, RGB
HEIGHT, WIDTH = picture("coins").shape[:2]
QUPATH = {"Content-Type": "application/json; charset=utf-8", "Accept": "application/json"}

AUTOMASK = {
    "type": "vit_t",
    "b64img": VIEW,
    "points_per_side": 4,
    "points_per_batch": 64,
    "pred_iou_thresh": 0.88,
    "stability_score_thresh": 0.95,
    "stability_score_offset": 1.0,
    "box_nms_thresh": 0.7,
    "crop_n_layers": 0,
    "crop_nms_thresh": 0.7,
    "crop_overlap_ratio": 0.3413333333333333,
    "crop_n_points_downscale_factor": 1,
    "min_mask_region_area": 0,
    "output_type": "Single Mask",
    "include_image_edge": False,
}


@dataclass(frozen=True)
class Annotation:
    """The annotation that QuPath makes of a Feature."""

    outline: Any
    path_class: str
    quality: float


def qupath_reads(answer: requests.Response) -> list[Annotation]:
    """Return the annotations that QuPath makes of an answer.

    It takes a list of Features, a FeatureCollection or one Feature, and ignores all but 200.
    """
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].split(";")[0] == "application/json"
    content = answer.json()
    if isinstance(content, dict):
        content = content["features"] if content["type"] == "FeatureCollection" else [content]
    annotations = []
    for feature in content:
        assert feature["type"] == "Feature"
        geometry, properties = feature["geometry"], feature["properties"]
        assert geometry["type"] in ("Polygon", "MultiPolygon")
        pieces = geometry["coordinates"]
        for rings in [pieces] if geometry["type"] == "Polygon" else pieces:
            for ring in rings:
                assert ring[0] == ring[-1]
                assert len(ring) >= 4
                assert all(len(vertex) == 2 for vertex in ring)
        # QuPath reads a measurement as a number; JSON's true is none.
        assert type(properties["quality"]) is float
        assert type(properties["object_idx"]) is int
        assert isinstance(properties["label"], str)
        assert isinstance(properties["sam_model"], str)
        outline = shape(geometry)
        assert outline.is_valid
        assert outline.area > 0
        assert shapely.box(0, 0, WIDTH, HEIGHT).covers(outline)
        annotations.append(
            Annotation(outline, str(properties["object_idx"]), properties["quality"])
        )
    assert [a.path_class for a in annotations] == [str(i) for i in range(len(annotations))]
    return annotations


def qupath_posts(server: Any, path: str, body: dict[str, Any]) -> requests.Response:
    answer: requests.Response = server.http.post(
        server.options.url + path, data=json.dumps(body).encode(), headers=QUPATH
    )
    return answer


COIN = shapely.box(20, 30, 70, 78)


@pytest.mark.parametrize(
    "prompt",
    [
        {"bbox": [20, 30, 70, 78]},
        {"point_coords": [[5, 5], [45, 55]], "point_labels": [0, 1]},
        {"point_coords": [[45, 55]], "point_labels": [1]},
        {"bbox": [20, 30, 70, 78], "point_coords": [[45, 55]], "point_labels": [1]},
    ],
    ids=["a rectangle", "background first", "a point", "a rectangle and a point"],
)
@pytest.mark.parametrize("multimask_output", [False, True])
def test_an_object_prompted(server: Any, prompt: dict[str, Any], multimask_output: bool) -> None:
    body = {"type": "vit_t", **prompt, "b64img": VIEW, "multimask_output": multimask_output}
    annotations = qupath_reads(qupath_posts(server, "/sam/", body))
    assert len(annotations) == (3 if multimask_output else 1)
    best = max(annotations, key=lambda annotation: annotation.quality)
    assert best.outline.intersection(COIN).area / best.outline.union(COIN).area > 0.5


def test_each_click_sends_the_whole_view_again(server: Any) -> None:
    """The extension sends several prompt objects one after the other."""
    for box, inside in (([20, 30, 70, 78], (45, 55)), ([302, 154, 382, 220], (340, 190))):
        body = {"type": "vit_t", "bbox": box, "b64img": VIEW, "multimask_output": False}
        [annotation] = qupath_reads(qupath_posts(server, "/sam/", body))
        assert annotation.outline.covers(shapely.Point(inside))


@pytest.mark.parametrize(
    "output_type",
    [
        "Multi-mask (all)",
        "Multi-mask (largest)",
        "Multi-mask (smallest)",
        "Multi-mask (best quality)",
        "Single Mask",
    ],
)
@pytest.mark.parametrize("include_image_edge", [True, False])
def test_automask(server: Any, output_type: str, include_image_edge: bool) -> None:
    body = {**AUTOMASK, "output_type": output_type, "include_image_edge": include_image_edge}
    answer = qupath_posts(server, "/sam/automask/", body)
    annotations = qupath_reads(answer)
    assert annotations
    for feature in answer.json():
        properties = feature["properties"]
        assert type(properties["stability_score"]) is float
        assert properties["area"] == shape(feature["geometry"]).area
        x, y, width, height = properties["bbox"]
        left, top, right, bottom = shape(feature["geometry"]).bounds
        assert (x, y, x + width + 1, y + height + 1) == (left, top, right, bottom)
        [[point_x, point_y]] = properties["point_coords"]
        assert 0 <= point_x <= WIDTH
        assert 0 <= point_y <= HEIGHT


def test_samapis_readme_in_its_fewest_words(server: Any) -> None:
    """A script sends only the required fields, with its HTTP client's default headers."""
    answer = server.http.post(
        f"{server.options.url}/sam/",
        json={"type": "vit_t", "bbox": [20, 30, 70, 78], "b64img": VIEW},
    )
    assert len(qupath_reads(answer)) == 1
    automask = {"type": "vit_t", "b64img": VIEW, "points_per_side": 3}
    assert qupath_reads(server.http.post(f"{server.options.url}/sam/automask/", json=automask))


@pytest.mark.parametrize(
    "fields",
    [
        {"bbox": [20, 30, 70, 78], "point_coords": [], "point_labels": []},
        {"bbox": [20, 30, 70, 78], "b64mask": "", "checkpoint_url": ""},
        {"bbox": [], "point_coords": [[45, 55]], "point_labels": [1]},
        {"bbox": None, "point_coords": [[45, 55]], "point_labels": [1], "b64mask": None},
    ],
)
def test_empty_fields_are_absent(server: Any, fields: dict[str, Any]) -> None:
    filled = {name: value for name, value in fields.items() if value}
    both = [
        qupath_reads(qupath_posts(server, "/sam/", {"type": "vit_t", "b64img": VIEW, **each}))
        for each in (fields, filled)
    ]
    assert both[0] == both[1]
    assert len(both[0]) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"crop_n_points_downscale_factor": 0},
        {"crop_n_points_downscale_factor": 0.0, "crop_n_layers": 0.0},
        {"crop_overlap_ratio": 2.0},
    ],
)
def test_what_is_for_crops_does_not_matter_without(server: Any, fields: dict[str, Any]) -> None:
    """The fields for crops are ignored without crops, even at the extension's lowest value, 0."""
    answer = qupath_posts(server, "/sam/automask/", {**AUTOMASK, **fields})
    assert answer.json() == qupath_posts(server, "/sam/automask/", AUTOMASK).json()
    refused = qupath_posts(
        server, "/sam/automask/", {**AUTOMASK, **fields, "crop_n_layers": 1}
    ).json()
    assert refused["error"]["field"] in fields


def test_a_mask_prompt_as_samapi_takes_it(server: Any) -> None:
    drawn = picture("coins") * 0
    drawn[35:75, 25:65] = 255
    body = {"type": "vit_t", "bbox": [20, 30, 70, 78], "b64img": VIEW, "b64mask": base64_png(drawn)}
    assert len(qupath_reads(qupath_posts(server, "/sam/", body))) == 1


def test_nothing_found_is_an_empty_list(server: Any) -> None:
    black = base64_png(picture("coins") * 0)
    strict = {"b64img": black, "pred_iou_thresh": 1.0, "stability_score_thresh": 1.0}
    answer = qupath_posts(server, "/sam/automask/", {**AUTOMASK, **strict})
    assert (answer.status_code, answer.json()) == (200, [])


def test_version_and_weights(server: Any) -> None:
    get = server.http.get
    version = get(f"{server.options.url}/sam/version/", headers={"Accept": "*/*"})
    assert version.headers["content-type"].startswith("text/plain")
    assert [part.isdigit() for part in version.text.split(".")] == [True] * 3
    for query in ("", "?type=vit_t", "?type=vit_h"):
        weights = get(f"{server.options.url}/sam/weights/{query}").json()
        assert isinstance(weights, list)
        assert all({"type", "name", "url"} <= set(entry) for entry in weights)
