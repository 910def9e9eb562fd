"""Every kind of bad request, to the gateway and to TorchServe, is refused with the right 4xx.

Every refusal has the one shape `{"error": {"code", "message", "field"}}`.
"""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest

from tests.support.sample_pictures import base64_png, picture

GOOD = base64_png(np.zeros((40, 60, 3), np.uint8))
COINS = base64_png(picture("coins"))


def png_header(width: int, height: int) -> str:
    """Return a PNG in base64 with a header and no pixels."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    return base64.b64encode(data + struct.pack(">I", zlib.crc32(chunk))).decode()


def body(**fields: Any) -> dict[str, Any]:
    return {"type": "vit_t", "b64img": GOOD, "bbox": [5, 5, 30, 30], **fields}


def without(field: str) -> dict[str, Any]:
    """Return a good body that lacks this field."""
    return {name: value for name, value in body().items() if name != field}


def raw(field: str, json_value: str) -> bytes:
    """Return a body with a value that Python's `json` would not write."""
    return f'{{"type": "vit_t", "b64img": "{GOOD}", "{field}": {json_value}}}'.encode()


# id -> (mode, body or bytes, status, field)
CASES: dict[str, tuple[str, Any, int, str | None]] = {
    "empty": ("prompt", b"", 400, None),
    "not JSON": ("prompt", b"b64img=1", 400, None),
    "cut JSON": ("prompt", json.dumps(body()).encode()[:-5], 400, None),
    "two documents": ("prompt", b"{} {}", 400, None),
    "an array": ("prompt", b"[]", 400, None),
    "null": ("prompt", b"null", 400, None),
    "not UTF-8": ("prompt", b'{"type": "vit_t\xff"}', 400, None),
    "deep nesting": ("prompt", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", 400, None),
    "no image": ("prompt", without("b64img"), 422, "b64img"),
    "image is a number": ("prompt", body(b64img=3), 422, "b64img"),
    "image is null": ("prompt", body(b64img=None), 422, "b64img"),
    "empty image": ("prompt", body(b64img=""), 422, "b64img"),
    "no base64": ("prompt", body(b64img="%%%%"), 422, "b64img"),
    "no image inside": ("prompt", body(b64img="aGVsbG8gd29ybGQ="), 422, "b64img"),
    "an SVG": ("prompt", body(b64img=base64.b64encode(b"<svg/>").decode()), 422, "b64img"),
    "truncated": ("prompt", body(b64img=COINS[: len(COINS) // 2 // 4 * 4]), 422, "b64img"),
    "header only": ("prompt", body(b64img=png_header(60, 40)), 422, "b64img"),
    "zero-sized": ("prompt", body(b64img=png_header(0, 40)), 422, "b64img"),
    "too many pixels": ("prompt", body(b64img=png_header(20_000, 20_000)), 413, "b64img"),
    "too thin": (
        "prompt",
        body(b64img=base64_png(np.zeros((1, 4000, 3), np.uint8)), bbox=[5, 0, 30, 1]),
        422,
        "b64img",
    ),
    "no prompt": ("prompt", without("bbox"), 422, "bbox"),
    "no prompts": ("prompt", {**without("bbox"), "prompts": []}, 422, "prompts"),
    "bbox and prompts": ("prompt", body(prompts=[{"bbox": [1, 1, 9, 9]}]), 422, "prompts"),
    "box of three": ("prompt", body(bbox=[1, 2, 3]), 422, "bbox"),
    "box of five": ("prompt", body(bbox=[1, 2, 3, 4, 5]), 422, "bbox"),
    "box of words": ("prompt", body(bbox=["1", "2", "3", "4"]), 422, "bbox"),
    "box is a number": ("prompt", body(bbox=7), 422, "bbox"),
    "box inverted": ("prompt", body(bbox=[30, 5, 5, 30]), 422, "bbox"),
    "box empty": ("prompt", body(bbox=[5, 5, 5, 30]), 422, "bbox"),
    "box outside": ("prompt", body(bbox=[60, 5, 90, 30]), 422, "bbox"),
    "box above": ("prompt", body(bbox=[5, -30, 30, 0]), 422, "bbox"),
    "box with NaN": ("prompt", raw("bbox", "[NaN,1,9,9]"), 422, "bbox"),
    "box with Infinity": ("prompt", raw("bbox", "[1,1,Infinity,9]"), 422, "bbox"),
    "box beyond floats": ("prompt", raw("bbox", "[1,1,1e999,9]"), 422, "bbox"),
    "box beyond sense": ("prompt", body(bbox=[-1e30, 1, 1e30, 9]), 422, "bbox"),
    "second prompt bad": (
        "prompt",
        {**without("bbox"), "prompts": [{"bbox": [1, 1, 9, 9]}, {"bbox": [99, 1, 199, 9]}]},
        422,
        "prompts.1.bbox",
    ),
    "prompt without box": ("prompt", {**without("bbox"), "prompts": [{}]}, 422, "prompts.0.bbox"),
    "points without labels": ("prompt", body(point_coords=[[9, 9]]), 422, "point_labels"),
    "labels without points": ("prompt", body(point_labels=[1]), 422, "point_labels"),
    "more labels": (
        "prompt",
        body(point_coords=[[9, 9]], point_labels=[1, 0]),
        422,
        "point_labels",
    ),
    "label 2": ("prompt", body(point_coords=[[9, 9]], point_labels=[2]), 422, "point_labels.0"),
    "point outside": (
        "prompt",
        body(point_coords=[[9, 9], [9, 999]], point_labels=[1, 1]),
        422,
        "point_coords.1",
    ),
    "points in prompts": (
        "prompt",
        {**without("bbox"), "prompts": [{"bbox": [1, 1, 9, 9], "point_coords": [[9, 9]]}]},
        422,
        "prompts.0.point_labels",
    ),
    "a list and points": (
        "prompt",
        {
            **without("bbox"),
            "prompts": [{"bbox": [1, 1, 9, 9]}],
            "point_coords": [[9, 9]],
            "point_labels": [1],
        },
        422,
        "prompts",
    ),
    "mask of another size": (
        "prompt",
        body(b64mask=base64_png(np.full((9, 9), 255, np.uint8))),
        422,
        "b64mask",
    ),
    "mask without object": (
        "prompt",
        body(b64mask=base64_png(np.zeros((256, 256), np.uint8))),
        422,
        "b64mask",
    ),
    "no such format": ("prompt", body(output_format="svg"), 406, "output_format"),
    "simplify negative": ("prompt", body(simplify=-1), 422, "simplify"),
    "simplify a word": ("automask", body(simplify="some"), 422, "simplify"),
    "mask is no image": ("prompt", body(b64mask="QUJD"), 422, "b64mask"),
    "multimask a word": ("prompt", body(multimask_output="yes"), 422, "multimask_output"),
    "type is a number": ("prompt", body(type=1), 422, "type"),
    "type unknown": ("prompt", body(type="vit_x"), 404, "type"),
    "type not loaded": ("prompt", body(type="vit_h"), 404, "type"),
    "type with a path": ("prompt", body(type="../models/vit_t"), 404, "type"),
    "lane as type": ("prompt", body(type="vit_t-automask"), 404, "type"),
    "weights unknown": (
        "prompt",
        body(checkpoint_url="http://a.example/evil.pt"),
        404,
        "checkpoint_url",
    ),
    "automask no image": ("automask", {"type": "vit_t"}, 422, "b64img"),
    "no points": ("automask", body(points_per_side=0), 422, "points_per_side"),
    "points a fraction": ("automask", body(points_per_side=1.5), 422, "points_per_side"),
    "points a word": ("automask", body(points_per_side="32"), 422, "points_per_side"),
    "points null": ("automask", body(points_per_side=None), 422, "points_per_side"),
    "too many points": ("automask", body(points_per_side=10_000), 422, "points_per_side"),
    "no batch": ("automask", body(points_per_batch=0), 422, "points_per_batch"),
    "threshold over 1": ("automask", body(pred_iou_thresh=1.5), 422, "pred_iou_thresh"),
    "threshold NaN": ("automask", raw("box_nms_thresh", "NaN"), 422, "box_nms_thresh"),
    "negative area": ("automask", body(min_mask_region_area=-1), 422, "min_mask_region_area"),
    "too many layers": ("automask", body(crop_n_layers=9), 422, "crop_n_layers"),
    "no points in layer": (
        "automask",
        body(points_per_side=3, crop_n_layers=1, crop_n_points_downscale_factor=8),
        422,
        "crop_n_points_downscale_factor",
    ),
    "no room for crops": (
        "automask",
        body(b64img=base64_png(np.zeros((1, 1), np.uint8)), points_per_side=1, crop_n_layers=1),
        422,
        "crop_n_layers",
    ),
    "output_type unknown": ("automask", body(output_type="best"), 422, "output_type"),
    "output_type a number": ("automask", body(output_type=1), 422, "output_type"),
    "edge a word": ("automask", body(include_image_edge="no"), 422, "include_image_edge"),
}  # fmt: skip


@pytest.mark.parametrize(("mode", "sent", "status", "field"), CASES.values(), ids=CASES.keys())
def test_refused(door: Any, mode: str, sent: Any, status: int, field: str | None) -> None:
    answer = door(mode, content=sent) if isinstance(sent, bytes) else door(mode, sent)
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    error = answer.json()["error"]
    assert set(answer.json()) == {"error"}
    assert set(error) == {"code", "message", "field"}
    # The field is bbox.2 if only that number of the box is wrong.
    assert error["field"] == field or (error["field"] or "").startswith(f"{field}.")
    assert len(error["message"]) > 10


def test_a_urlencoded_body_is_refused(server: Any) -> None:
    """curl sends this content type by default."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    for url, authorization in doors_of(server):
        answer = server.http.post(url, data=b"a=1", headers={**headers, **authorization})
        assert answer.status_code == 400
        assert set(answer.json()["error"]) == {"code", "message", "field"}


def doors_of(server: Any) -> list[tuple[str, dict[str, str]]]:
    """Return the URL and the headers for a prompt to TorchServe and to the gateway."""
    return [
        (f"{server.options.inference_url}/predictions/vit_t", server.authorization("inference")),
        (f"{server.options.url}/sam/", {}),
    ]


@pytest.mark.parametrize(
    ("parts", "status", "field"),
    [
        ({"type": (None, "vit_t"), "bbox": (None, "[5,5,30,30]")}, 422, "image"),
        ({"image": ("x", b"no image")}, 422, "image"),
        ({"bbox": (None, "5,5,30,30")}, 422, "bbox"),
        ({"request": (None, "[]")}, 400, None),
        ({"request": (None, '{"bbox": [1, 1, 9, 9]}')}, 422, "bbox"),
        ({"b64img": (None, GOOD)}, 422, "b64img"),
        ({"type": (None, "vit_h")}, 404, "type"),
    ],
)
def test_a_form_that_is_wrong(
    server: Any, parts: dict[str, Any], status: int, field: str | None
) -> None:
    good = {"type": (None, "vit_t"), "bbox": (None, "[5,5,30,30]")}
    image = {} if parts.keys() == good.keys() else {"image": ("x.png", base64.b64decode(GOOD))}
    for url, authorization in doors_of(server):
        answer = server.http.post(url, files={**good, **image, **parts}, headers=authorization)
        assert (answer.status_code, answer.json()["error"]["field"]) == (status, field)


@pytest.mark.parametrize("content_type", ["", "; boundary=", "; boundary=other"])
def test_a_form_that_cannot_be_read(server: Any, content_type: str) -> None:
    headers = {"Content-Type": f"multipart/form-data{content_type}"}
    content = b'--b\r\nContent-Disposition: form-data; name="type"\r\n\r\nvit_t\r\n--b--\r\n'
    answer = server.http.post(f"{server.options.url}/sam/", data=content, headers=headers)
    assert 400 <= answer.status_code < 500
    assert set(answer.json()["error"]) == {"code", "message", "field"}


@pytest.mark.parametrize("mode", ["prompt", "automask"])
def test_a_body_over_the_limit(door: Any, mode: str) -> None:
    answer = door(mode, content=b'{"b64img": "' + b"A" * (64 * 2**20) + b'"}')
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "too_large"


def test_what_is_not_loaded_says_what_is_and_how_to_add_it(server: Any) -> None:
    message = server.post("/sam/", body(type="vit_h")).json()["error"]["message"]
    assert "Loaded: vit_t" in message
    assert "make serve MODELS='vit_t vit_h'" in message


def test_unknown_fields_are_ignored_as_samapi_does(door: Any) -> None:
    assert door("prompt", body(colour="red")).status_code == 200
