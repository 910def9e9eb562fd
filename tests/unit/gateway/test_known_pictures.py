"""Which pictures count as known, and how they are sent."""

from __future__ import annotations

import json

import pytest

from samserve_gateway.bodies import MAX_ABRIDGED_BYTES, Body
from samserve_gateway.known_pictures import KnownPictures

PICTURE = "A" * 1000


def body(picture: str = PICTURE, **fields: object) -> Body:
    return Body(json.dumps({"type": "vit_t", "b64img": picture, **fields}).encode())


def sent(pictures: KnownPictures, family: str, body: Body) -> list[bytes]:
    """All that would be sent if every one was refused."""
    return [content for content, _ in pictures.contents(family, body)]


def test_a_picture_is_known_to_its_family_only() -> None:
    pictures, first = KnownPictures(), body()
    assert sent(pictures, "vit_t", first) == [first.json]
    pictures.remember("vit_t", first)
    another = body(bbox=[1, 2, 3, 4])
    assert sent(pictures, "vit_t", another) == [another.abridged(), another.json]
    assert sent(pictures, "vit_t.mine", another) == [another.json]
    assert sent(pictures, "vit_t", body("B" * 1000))[1:] == []


def test_a_file_and_its_digest_are_sent() -> None:
    pictures, form = KnownPictures(), Body(b'{"type": "vit_t"}', b"a file")
    [(content, content_type)] = pictures.contents("vit_t", form)
    assert b"a file" in content
    assert content_type.startswith("multipart/form-data")
    pictures.remember("vit_t", form)
    digest, whole = pictures.contents("vit_t", form)
    assert digest == (form.json, "application/json")
    assert b"a file" in whole[0]


@pytest.mark.parametrize("odd", [b"{}", b"[]", b"{", b'{"b64img": 7}'])
def test_a_body_without_a_picture_is_never_known(odd: bytes) -> None:
    pictures, without = KnownPictures(), Body(odd + b" " * 1000)
    pictures.remember("vit_t", without)
    assert sent(pictures, "vit_t", without) == [without.json]


def test_a_body_with_nan_is_never_abridged() -> None:
    """JSON has no NaN, so the worker must see that the client sent it."""
    pictures, odd = KnownPictures(), body(bbox=[float("nan"), 0, 1, 1])
    pictures.remember("vit_t", odd)
    assert sent(pictures, "vit_t", odd) == [odd.json]


def test_the_picture_used_least_recently_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("samserve_gateway.known_pictures.MAX_KNOWN", 2)
    pictures = KnownPictures()
    first, second, third = (body(letter * 1000) for letter in "ABC")
    pictures.remember("vit_t", first)
    pictures.remember("vit_t", second)
    assert len(sent(pictures, "vit_t", first)) == 2
    pictures.remember("vit_t", third)
    assert [len(sent(pictures, "vit_t", known)) for known in (first, second, third)] == [2, 1, 2]


def test_every_outcome_is_counted() -> None:
    outcomes: list[str] = []
    pictures, picture = KnownPictures(outcomes.append), body()
    next(pictures.contents("vit_t", picture))
    pictures.remember("vit_t", picture)
    next(pictures.contents("vit_t", picture))
    assert outcomes == ["full", "known"]
    sent(pictures, "vit_t", picture)
    assert outcomes == ["full", "known", "known", "forgotten"]


def test_a_body_that_is_large_without_its_picture_is_sent_as_it_is() -> None:
    pictures, large = KnownPictures(), body(other="a" * MAX_ABRIDGED_BYTES)
    pictures.remember("vit_t", body())
    assert sent(pictures, "vit_t", large) == [large.json]
    small = body(other="a" * (MAX_ABRIDGED_BYTES // 2))
    assert sent(pictures, "vit_t", small) == [small.abridged(), small.json]


def test_a_digest_from_a_client_is_sent_once() -> None:
    pictures, digest = KnownPictures(), body("sha256:" + "a" * 64)
    pictures.remember("vit_t", digest)
    assert sent(pictures, "vit_t", digest) == [digest.json]


def test_which_content_has_the_picture() -> None:
    """Only such a content may cost an embedding."""
    of_json, form = body(), Body(b'{"type": "vit_t"}', b"a file")
    for picture in (of_json, form):
        assert picture.has_picture(picture.whole()[0])
        assert not picture.has_picture(picture.abridged())
    digest = body("sha256:" + "a" * 64)
    assert not digest.has_picture(digest.whole()[0])
    with_nan = body(bbox=[float("nan"), 0, 1, 1])
    assert with_nan.has_picture(with_nan.whole()[0])
