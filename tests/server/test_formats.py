"""One request in every form of body and answer, to the gateway and to TorchServe."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
import requests
import zstandard
from pycocotools import mask as coco
from shapely.geometry import shape

from tests.support.geometry import rasterise
from tests.support.sample_pictures import base64_png, picture

COINS = base64_png(picture("coins"))
SIZE = picture("coins").shape[:2]
BOX = [20, 30, 70, 78]
JSON = {"type": "vit_t", "bbox": BOX, "b64img": COINS}
FILE = ("coins.png", base64.b64decode(COINS), "image/png")


@pytest.fixture(params=["gateway", "torchserve"])
def send(request: pytest.FixtureRequest, server: Any) -> Any:
    """Return `send(mode, headers=…, json=… or files=…)` to the gateway and to TorchServe."""

    def post(mode: str, headers: dict[str, str] | None = None, **body: Any) -> requests.Response:
        lane = "vit_t" if mode == "prompt" else "vit_t-automask"
        url = f"{server.options.inference_url}/predictions/{lane}"
        authorization = server.authorization("inference")
        if request.param == "gateway":
            path = "/sam/" if mode == "prompt" else "/sam/automask/"
            url, authorization = server.options.url + path, {}
        answer = server.http.post(url, headers={**(headers or {}), **authorization}, **body)
        assert answer.status_code == 200, answer.text
        return answer  # type: ignore[no-any-return]

    return post


def test_a_form_is_answered_as_the_json_is(send: Any) -> None:
    expected = send("prompt", json=JSON).json()
    fields = {"type": (None, "vit_t"), "bbox": (None, json.dumps(BOX))}
    request = {"request": (None, json.dumps({"type": "vit_t", "bbox": BOX}))}
    for files in (
        {"image": FILE, **fields},
        {**fields, "image": FILE},  # the parts may come in any order
        {"image": FILE, **request},
        {"image": FILE, "request": ("r.json", request["request"][1], "application/json")},
        {"b64img": (None, COINS), **fields},
    ):
        for _ in range(2):  # the second time the gateway knows the picture
            assert send("prompt", files=files).json() == expected


def test_a_form_for_automask(send: Any) -> None:
    request = {"type": "vit_t", "points_per_side": 3, "output_type": "Single mask"}
    expected = send("automask", json={**request, "b64img": COINS}).json()
    files = {name: (None, str(value)) for name, value in request.items()}
    assert send("automask", files={"image": FILE, **files}).json() == expected != []


def test_a_mask_as_a_file(send: Any) -> None:
    drawn = np.zeros(SIZE, np.uint8)
    drawn[35:75, 25:65] = 255
    mask = base64_png(drawn)
    expected = send("prompt", json={**JSON, "b64mask": mask}).json()
    fields = {"type": (None, "vit_t"), "bbox": (None, json.dumps(BOX))}
    files = {"image": FILE, "mask": ("m.png", base64.b64decode(mask)), **fields}
    assert send("prompt", files=files).json() == expected != send("prompt", json=JSON).json()


@pytest.mark.parametrize("by", ["Accept", "accept", "output_format"])
def test_a_feature_collection(send: Any, by: str) -> None:
    features = send("prompt", json=JSON).json()
    request, headers = JSON, {by: "application/geo+json"}
    if by == "output_format":
        request, headers = {**JSON, "output_format": "feature_collection"}, {}
    answer = send("prompt", headers, json=request)
    assert answer.headers["content-type"] == "application/geo+json"
    collection = {"type": "FeatureCollection", "features": features, "pages": 1}
    assert answer.json() == collection


def test_coco_run_lengths(send: Any) -> None:
    request = {"type": "vit_t", "points_per_side": 4, "b64img": COINS}
    features = send("automask", json=request).json()
    answer = send("automask", json={**request, "output_format": "coco_rle"})
    assert answer.headers["content-type"] == "application/vnd.coco-rle+json"
    for record, feature in zip(answer.json(), features, strict=True):
        mask = coco.decode(record["segmentation"])
        np.testing.assert_array_equal(mask, rasterise(feature["geometry"], *SIZE))
        properties = feature["properties"]
        assert record["predicted_iou"] == properties["quality"]
        assert {k: v for k, v in record.items() if k in properties} == {
            k: properties[k] for k in ("area", "bbox", "stability_score", "point_coords")
        }


def test_simplified_outlines(send: Any) -> None:
    for mode, request in (
        ("prompt", JSON),
        ("automask", {"type": "vit_t", "points_per_side": 4, "b64img": COINS}),
    ):
        exact = send(mode, json=request).json()
        simple = send(mode, json={**request, "simplify": 2}).json()
        for before, after in zip(exact, simple, strict=True):
            assert after["properties"] == before["properties"]
            geometry, outline = shape(after["geometry"]), shape(before["geometry"])
            assert geometry.is_valid
            assert geometry.boundary.hausdorff_distance(outline.boundary) <= 2
        assert len(json.dumps(simple)) < len(json.dumps(exact))


def test_large_answers_are_compressed_for_those_who_can_read_it(server: Any) -> None:
    # All three masks of every point of a grainy picture make a large answer.
    image = base64_png(picture("immunohistochemistry"))
    request = {"type": "vit_t", "points_per_side": 6, "b64img": image, "pred_iou_thresh": 0}
    request |= {"stability_score_thresh": 0, "output_type": "Multi-mask (all)"}
    plain = server.http.post(
        f"{server.options.url}/sam/automask/", json=request, headers={"Accept-Encoding": "identity"}
    )
    assert "content-encoding" not in plain.headers
    for encoding in ("gzip", "zstd"):
        answer = server.http.post(
            f"{server.options.url}/sam/automask/",
            json=request,
            headers={"Accept-Encoding": encoding},
        )
        assert answer.headers["content-encoding"] == encoding
        assert int(answer.headers["content-length"]) < len(plain.content) / 3
        # requests decompresses gzip by itself.
        content = answer.content if encoding == "gzip" else zstandard.decompress(answer.content)
        assert content == plain.content
    click = server.http.post(f"{server.options.url}/sam/", json=JSON)
    assert "content-encoding" not in click.headers
