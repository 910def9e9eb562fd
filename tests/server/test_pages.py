"""A request for one page of a TIFF is answered like a request for that page as a picture."""

from __future__ import annotations

import base64
import io
import json
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from tests.support.answers import source
from tests.support.geometry import rasterise, same_mask
from tests.support.recorded import recorded
from tests.support.sample_pictures import base64_png, picture

BOX = [20, 30, 70, 78]
PAGES_HEADER = "X-Image-Pages"


def new_pages() -> list[NDArray[np.uint8]]:
    """Return three pictures with random pixels, so that no cache can hold them."""
    pages = [picture("coins").copy(), picture("coins")[::-1].copy(), picture("coffee").copy()]
    for page in pages:
        page[0, :8] = np.random.default_rng().integers(0, 256, (8, 1), np.uint8)
    return pages


def tiff_of(pages: list[NDArray[np.uint8]]) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page, photometric="rgb", compression="zlib", contiguous=False)
    return file.getvalue()


def body(image: str, mode: str = "prompt", **fields: Any) -> dict[str, Any]:
    prompt = {"bbox": BOX} if mode == "prompt" else {"points_per_side": 3}
    return {"type": "vit_t", "b64img": image, **prompt, **fields}


@pytest.mark.parametrize("mode", ["prompt", "automask"])
def test_a_page_is_answered_as_that_picture_alone(door: Any, mode: str) -> None:
    pages = new_pages()
    stack = base64.b64encode(tiff_of(pages)).decode()
    alone = [door(mode, body(base64_png(page), mode)) for page in pages]
    assert [answer.headers[PAGES_HEADER] for answer in alone] == ["1"] * 3
    for _ in range(2):  # the second time every page is a known picture
        for page in (2, 0, 1):
            answer = door(mode, body(stack, mode, page=page))
            assert answer.status_code == 200, answer.text
            assert answer.headers[PAGES_HEADER] == "3"
            assert answer.json() == alone[page].json()
    assert door(mode, body(stack, mode)).json() == alone[0].json()
    assert alone[0].json() != alone[1].json()


def test_a_collection_says_how_many_there_are(door: Any) -> None:
    stack = base64.b64encode(tiff_of(new_pages())).decode()
    answer = door("prompt", body(stack, page=1, output_format="feature_collection"))
    assert answer.json()["pages"] == 3
    assert answer.json()["type"] == "FeatureCollection"


@pytest.mark.parametrize("page", [3, 99])
def test_a_page_that_is_not_there(door: Any, page: int) -> None:
    stack = base64.b64encode(tiff_of(new_pages())).decode()
    for _ in range(2):
        answer = door("prompt", body(stack, page=page))
        assert answer.status_code == 422
        error = answer.json()["error"]
        assert error["field"] == "page"
        assert "has 3 pages" in error["message"]
        assert door("prompt", body(stack)).status_code == 200


@pytest.mark.parametrize("page", [-1, 1.5, "1", None])
def test_what_is_no_page(door: Any, page: Any) -> None:
    answer = door("prompt", body(base64_png(picture("coins")), page=page))
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, "page")


def test_as_a_part_of_a_form(server: Any) -> None:
    pages = new_pages()
    expected = server.post("/sam/", body(base64_png(pages[2]))).json()
    files = {
        "image": ("s.tif", tiff_of(pages), "image/tiff"),
        "type": (None, "vit_t"),
        "bbox": (None, json.dumps(BOX)),
        "page": (None, "2"),
    }
    for _ in range(2):
        answer = server.http.post(f"{server.options.url}/sam/", files=files)
        assert answer.headers[PAGES_HEADER] == "3"
        assert answer.json() == expected
    refused = server.http.post(f"{server.options.url}/sam/", files={**files, "page": (None, "3")})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "page")


def test_a_page_not_seen_of_a_known_picture_is_sent_in_full(server: Any) -> None:
    # Below 1 MB: aiohttp warns of a larger body in `bytes`, and tests turn warnings into errors.
    stack = base64.b64encode(tiff_of([page[:200, :250] for page in new_pages()])).decode()
    with recorded(server) as (gateway, passed):
        answers = [gateway.post("/sam/", json=body(stack, page=page)) for page in (0, 1, 1, 0)]
        lost = gateway.post("/sam/", json=body(stack, page=5))
    assert [source(answer) for answer in answers] == ["encoder", "encoder", "memory", "memory"]
    assert [status for _, status in passed] == [200, 409, 200, 200, 200, 409, 422]
    assert "has 3 pages" in lost.json()["error"]["message"]


def test_a_reference_names_a_page(server: Any, door: Any) -> None:
    stack = base64.b64encode(tiff_of(new_pages())).decode()
    whole = door("prompt", body(stack, page=1))
    reference = "sha256:" + sha256(stack.encode()).hexdigest()
    known = door("prompt", body(reference, page=1))
    assert known.json() == whole.json()
    assert known.headers[PAGES_HEADER] == "3"
    assert door("prompt", body(reference, page=2)).status_code == 409


def test_pages_that_come_together(server: Any) -> None:
    """Requests of one batch name one file, but different pages of it."""
    pages = new_pages()
    stack = base64.b64encode(tiff_of(pages)).decode()
    alone = [server.post("/sam/", body(base64_png(page))).json() for page in pages]
    pages_asked = [index % 3 for index in range(24)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(
            pool.map(lambda page: server.post("/sam/", body(stack, page=page)).json(), pages_asked)
        )
    for page, [feature] in zip(pages_asked, answers, strict=True):
        # Prompts that are decoded in one batch differ in the last digits.
        [expected] = alone[page]
        mask, expected_mask = (
            rasterise(one["geometry"], *pages[page].shape[:2]) for one in (feature, expected)
        )
        assert same_mask(mask, expected_mask)
        assert feature["properties"]["quality"] == pytest.approx(
            expected["properties"]["quality"], abs=1e-3
        )


@pytest.mark.parametrize("tile_size", [0, 256])
def test_automask_in_tiles_and_as_a_stream(server: Any, tile_size: int) -> None:
    pages = new_pages()
    stack = base64.b64encode(tiff_of(pages)).decode()
    alone = body(base64_png(pages[1]), "automask", tile_size=tile_size)
    expected = server.post("/sam/automask/", alone).json()
    request = body(stack, "automask", page=1, tile_size=tile_size)
    assert server.post("/sam/automask/", request).json() == expected
    answer = server.post("/sam/automask/?stream=1", request)
    assert answer.headers[PAGES_HEADER] == "3"
    events = [json.loads(line) for line in answer.text.splitlines()]
    assert events[-1] == {"event": "done", "pages": 3}
    features = [event for event in events if event["event"] == "feature"]
    assert [event["geometry"] for event in features] == [one["geometry"] for one in expected]
    refused = server.post("/sam/automask/?stream=1", {**request, "page": 3})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "page")


def test_the_pages_of_a_scientific_picture(door: Any) -> None:
    """A picture of 12 bits per channel, whose high bytes alone would be nearly black."""
    wide = (picture("coins").astype(np.uint16) << 4) + 7
    file = io.BytesIO()
    tifffile.imwrite(file, wide, photometric="rgb")
    answer = door("prompt", body(base64.b64encode(file.getvalue()).decode()))
    scaled = np.rint(wide * (255 / wide.max())).astype(np.uint8)
    assert answer.json() == door("prompt", body(base64_png(scaled))).json() != []
