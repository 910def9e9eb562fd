"""What goes beyond samapi's API, at the gateway and at TorchServe: the answers of a real server."""

from __future__ import annotations

import base64
import json
from hashlib import sha256
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import requests
from mobile_sam import SamPredictor
from numpy.typing import NDArray
from PIL import Image

from tests.support.geometry import rasterise, same_mask
from tests.support.sample_pictures import base64_png, picture

COINS = base64_png(picture("coins"))
FILE = base64.b64decode(COINS)
SIZE = picture("coins").shape[:2]
CLICK = {"type": "vit_t", "b64img": COINS, "point_coords": [[45, 55]], "point_labels": [1]}
AUTOMASK = {"type": "vit_t", "b64img": COINS, "points_per_side": 4}


def read(png: bytes) -> NDArray[Any]:
    with Image.open(BytesIO(png)) as image:
        return np.asarray(image)


def test_a_click_refines_the_last_mask(door: Any, model: Any) -> None:
    first = door("prompt", {**CLICK, "return_logits": True}).json()[0]["properties"]
    written = first["low_res_logits"]
    again = {**CLICK, "point_coords": [[45, 55], [5, 5]], "point_labels": [1, 0]}
    [feature] = door("prompt", {**again, "mask_input": written}).json()
    reference = SamPredictor(model)
    reference.set_image(picture("coins"))
    logits = np.frombuffer(base64.b64decode(written["data"]), "<f2").reshape(256, 256)
    masks, quality, _ = reference.predict(
        np.array([[45, 55], [5, 5]]),
        np.array([1, 0]),
        mask_input=logits[None].astype(np.float32),
        multimask_output=False,
    )
    assert same_mask(rasterise(feature["geometry"], *SIZE), masks[0])
    assert feature["properties"]["quality"] == pytest.approx(quality[0], abs=1e-4)


def test_images(door: Any) -> None:
    for mode, body in (("prompt", CLICK), ("automask", AUTOMASK)):
        masks = [rasterise(f["geometry"], *SIZE) for f in door(mode, body).json()]
        labels = door(mode, {**body, "output_format": "label_png"})
        assert labels.headers["Content-Type"] == "image/png"
        assert labels.headers["X-Samserve-Objects"] == str(len(masks))
        assert len(labels.headers["X-Samserve-Quality"].split(",")) == len(masks)
        expected = np.zeros(SIZE, np.uint16)
        for index in sorted(range(len(masks)), key=lambda i: -np.count_nonzero(masks[i])):
            expected[masks[index]] = index + 1
        np.testing.assert_array_equal(read(labels.content), expected)
        union = read(door(mode, {**body, "output_format": "mask_png"}).content)
        np.testing.assert_array_equal(union, np.where(np.any(masks, axis=0), 255, 0))


def test_a_region_and_areas(door: Any) -> None:
    triangle = {"type": "Polygon", "coordinates": [[[0, 0], [384, 0], [0, 303], [0, 0]]]}
    everywhere = door("automask", AUTOMASK).json()
    within = door("automask", {**AUTOMASK, "region": triangle}).json()
    assert 0 < len(within) < len(everywhere)
    for feature in within:
        [[x, y]] = feature["properties"]["point_coords"]
        assert x / 384 + y / 303 <= 1
    areas = sorted(feature["properties"]["area"] for feature in everywhere)
    bounds = {"min_area": areas[1], "max_area": areas[-2]}
    kept = door("automask", {**AUTOMASK, **bounds}).json()
    expected = [f for f in everywhere if areas[1] <= f["properties"]["area"] <= areas[-2]]
    for index, feature in enumerate(expected):
        feature["properties"]["object_idx"] = index
    assert kept == expected != []
    refused = door("automask", {**AUTOMASK, "region": [0, 0, 1, 1]})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "region")


def test_the_strict_mode(door: Any, server: Any) -> None:
    for mode, body in (("prompt", CLICK), ("automask", AUTOMASK)):
        refused = door(mode, {**body, "strict": True, "simplfy": 1})
        assert refused.status_code == 422
        assert refused.json()["error"]["field"] == "simplfy"
        assert "Did you mean simplify?" in refused.json()["error"]["message"]
        assert door(mode, {**body, "strict": True}).status_code == 200
    headers = {"Prefer": "handling=strict"}
    targets = {
        f"{server.options.url}/sam/": {},
        f"{server.options.inference_url}/predictions/vit_t": server.authorization("inference"),
    }
    for url, key in targets.items():
        answer = server.http.post(url, json=CLICK, headers={**headers, **key})
        assert answer.headers["Preference-Applied"] == "handling=strict"
        refused = server.http.post(url, json={**CLICK, "bxo": 1}, headers={**headers, **key})
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "bxo")
        form = {"image": FILE, "request": (None, json.dumps({"type": "vit_t"})), "bxo": (None, "1")}
        refused = server.http.post(url, files=form, headers={**headers, **key})
        assert (refused.status_code, refused.json()["error"]["field"]) == (422, "bxo")


def test_a_picture_is_sent_ahead(server: Any) -> None:
    url = f"{server.options.url}/sam/images/"
    lines = base64.encodebytes(FILE + b"\0").decode()  # another file with the same pixels
    text = base64.b64encode(FILE + b"\0").decode()
    digest = f"sha256:{sha256(text.encode()).hexdigest()}"

    def put(params: dict[str, Any] | None = None, **body: Any) -> requests.Response:
        answer = server.http.put(url, params={"type": "vit_t", **(params or {})}, **body)
        assert answer.status_code in (200, 201), answer.text
        return answer  # type: ignore[no-any-return]

    expected = {"digest": digest, "width": SIZE[1], "height": SIZE[0], "pages": 1}
    assert put(data=FILE + b"\0").json() == expected
    for body in (
        {"json": {"b64img": lines}},
        {"files": {"image": FILE + b"\0"}},
        {"data": FILE + b"\0", "headers": {"Content-Type": "image/png"}},
    ):
        answer = put(**body)
        assert (answer.status_code, answer.json()) == (200, expected)
    click = server.post("/sam/", {**CLICK, "b64img": digest})
    assert click.status_code == 200
    assert "encoder" not in click.headers["Server-Timing"]
    assert click.json() == server.post("/sam/", CLICK).json()
    for data in (b"", b"no picture", FILE[:300]):
        refused = server.http.put(url, params={"type": "vit_t"}, data=data)
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "invalid_image")


def test_a_large_picture_is_sent_ahead(server: Any) -> None:
    """It takes more than the prompt lane's share, so that the automask lane embeds it."""
    rng = np.random.default_rng(7)
    large = np.repeat(np.repeat(rng.integers(0, 256, (52, 52, 3), np.uint8), 100, 0), 100, 1)
    content = BytesIO()
    Image.fromarray(large).save(content, "PNG", compress_level=1)
    answer = server.http.put(
        f"{server.options.url}/sam/images/", params={"type": "vit_t"}, data=content.getvalue()
    )
    assert answer.status_code == 201, answer.text
    assert (answer.json()["width"], answer.json()["height"]) == (5200, 5200)
    box = {"type": "vit_t", "bbox": [100, 100, 900, 800], "b64img": answer.json()["digest"]}
    click = server.post("/sam/", box)
    assert click.status_code == 200
    assert "encoder" not in click.headers["Server-Timing"]
    mask = server.post("/sam/", {**box, "output_format": "mask_png"})
    assert read(mask.content).shape == (5200, 5200)
