"""A worker embeds a picture ahead, so that the first prompt finds it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pytest

from samserve.embeddings.cache import EmbeddingCache
from samserve.model import Model
from samserve.network.decoder import Decoder
from samserve.network.encoder import Encoder
from samserve.network.threads import Threads
from samserve.pictures.decoder_process import DecoderProcess
from samserve.segmenter import Segmenter
from tests.support.handlers import Answered, answers, handler_of
from tests.support.sample_pictures import base64_png, picture
from tests.support.settings import SETTINGS

COINS = base64_png(picture("coins"))
DIGEST = f"sha256:{sha256(COINS.encode()).hexdigest()}"
EMBED = {"X-Mode": "embed"}
BODY = {"type": "vit_t", "b64img": COINS}
CLICK = {"type": "vit_t", "bbox": [20, 30, 70, 78]}


@pytest.fixture
def lanes(model: Any) -> Iterator[dict[str, Any]]:
    encoder, decoder = Encoder(model), Decoder(model)
    cache = EmbeddingCache(encoder, decoder, identity="", memory_bytes=2**28, store=None)
    segmenter = Segmenter(Model("vit_t", cache, decoder, model.device, "pytorch", Threads(2)))
    process = DecoderProcess()
    yield {lane: handler_of(segmenter, process, lane) for lane in ("vit_t", "vit_t-automask")}
    process.close()


def embed(lane: Any, body: Any, **headers: str) -> Answered:
    [answered] = answers(lane, [body], [{**EMBED, **headers}])
    return answered


@pytest.mark.parametrize("lane", ["vit_t", "vit_t-automask"])
def test_then_the_digest_is_enough(lanes: dict[str, Any], lane: str) -> None:
    [unknown] = answers(lanes["vit_t"], [{**CLICK, "b64img": DIGEST}])
    assert (unknown.status, unknown.code) == (409, "unknown_image")
    first = embed(lanes[lane], BODY)
    assert first.body == {"digest": DIGEST, "width": 384, "height": 303, "pages": 1}
    assert first.status == 201
    assert first.headers["X-Image-Pages"] == "1"
    assert "encoder" in first.headers["Server-Timing"]
    again = embed(lanes[lane], BODY)
    assert (again.status, again.body) == (200, first.body)
    by_digest = embed(lanes[lane], {**BODY, "b64img": DIGEST})
    assert (by_digest.status, by_digest.body) == (200, first.body)
    [click] = answers(lanes["vit_t"], [{**CLICK, "b64img": DIGEST}])
    assert click.status == 200
    assert "memory" in click.headers["Server-Timing"]


def test_beside_clicks_in_one_batch(lanes: dict[str, Any]) -> None:
    """An upload and a prompt on the same picture, and one on another, in one batch."""
    other = base64_png(picture("chelsea"))
    batch: list[dict[str, Any]] = [
        BODY,
        {**CLICK, "b64img": COINS},
        {"type": "vit_t", "b64img": other},
    ]
    one, click, two = answers(lanes["vit_t"], batch, [EMBED, {}, EMBED])
    assert (one.status, click.status, two.status) == (201, 200, 201)
    size = (two.body["width"], two.body["height"])
    assert size == picture("chelsea").shape[1::-1]
    assert len(click.body) == 1


def odd(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"b64img": odd(b"no picture")}, 422, "invalid_image"),
        ({"b64img": odd(base64.b64decode(COINS)[:500])}, 422, "invalid_image"),
        ({"b64img": "?"}, 422, "invalid_field"),
        ({}, 422, "invalid_field"),
        ({"b64img": COINS, "page": 7}, 422, "invalid_field"),
        ({"b64img": COINS, "type": "vit_b"}, 404, "not_found"),
        ({"b64img": "sha256:" + "0" * 64}, 409, "unknown_image"),
        ({"b64img": COINS, "strict": True, "bbox": [1, 2, 3, 4]}, 422, "invalid_field"),
    ],
)
def test_what_cannot_be_embedded(
    lanes: dict[str, Any], body: dict[str, Any], status: int, code: str
) -> None:
    refused = embed(lanes["vit_t"], body)
    assert (refused.status, refused.code) == (status, code)


def test_a_heavy_picture_is_for_the_automask_lane(lanes: dict[str, Any]) -> None:
    light = SETTINGS.light.model_copy(update={"max_image_pixels": 10_000})
    settings = SETTINGS.model_copy(update={"light": light})
    lane = handler_of(lanes["vit_t"].segmenter, lanes["vit_t"].decoder, settings=settings)
    assert embed(lane, BODY).status == 421
    assert embed(lanes["vit_t-automask"], BODY).status == 201
    assert embed(lane, BODY).status == 200  # it need not be decoded any more


def test_other_modes(lanes: dict[str, Any]) -> None:
    [refused] = answers(lanes["vit_t"], [BODY], [{"X-Mode": "upload"}])
    assert (refused.status, refused.code) == (400, "invalid_request")
    assert "must be prompt, embed or absent" in refused.message
    [large] = answers(
        lanes["vit_t"],
        [{"type": "vit_t", "b64img": base64_png(np.zeros((9, 9), np.uint8))}],
        [EMBED],
    )
    assert large.status == 201
