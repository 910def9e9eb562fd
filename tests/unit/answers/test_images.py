"""Answers as images: which object a pixel belongs to, and how many there are."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samserve.answers import images
from samserve.answers.formats import FORMATS, Content, chosen
from samserve.boxes import Box
from samserve.errors import TooLarge
from samserve.masks.mask import ObjectMask, PromptMask

SIZE = (40, 60)
BY_NAME = {form.name: form for form in FORMATS}


def mask_of(full: NDArray[np.bool_], quality: float = 0.5) -> ObjectMask:
    rows, columns = np.nonzero(full)
    box = Box(0, 0, 0, 0)
    if len(rows):
        box = Box(int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
    cut = full[box.y0 : box.y1, box.x0 : box.x1]
    return PromptMask(cut, box, full.shape, quality, 0)


def rectangle(x0: int, y0: int, x1: int, y1: int, size: tuple[int, int] = SIZE) -> Any:
    full = np.zeros(size, np.bool_)
    full[y0:y1, x0:x1] = True
    return full


def content(masks: Sequence[ObjectMask], size: tuple[int, int] = SIZE, **others: Any) -> Content:
    return Content(iter(masks), size, "vit_t", 0, **others)


def read(png: bytes) -> NDArray[Any]:
    with Image.open(BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def drawn(name: str, fulls: Sequence[NDArray[np.bool_]]) -> NDArray[Any]:
    size = fulls[0].shape if fulls else SIZE
    body, qualities = BY_NAME[name].write(content([mask_of(full) for full in fulls], size))
    assert qualities == [0.5 for full in fulls if full.any()]
    return read(body)


def expected(fulls: Sequence[NDArray[np.bool_]]) -> NDArray[Any]:
    """Paint the objects from the largest to the smallest, as the documentation says."""
    image = np.zeros(fulls[0].shape, np.uint16)
    numbered = list(enumerate((full for full in fulls if full.any()), 1))
    for label, full in sorted(numbered, key=lambda pair: -np.count_nonzero(pair[1])):
        image[full] = label
    return image


INNER, OUTER, ASIDE = rectangle(10, 10, 20, 20), rectangle(5, 5, 30, 35), rectangle(40, 0, 60, 9)
EMPTY = np.zeros(SIZE, np.bool_)


@pytest.mark.parametrize(
    "fulls",
    [
        [ASIDE],
        [INNER, OUTER, ASIDE],
        [OUTER, INNER, ASIDE],
        [EMPTY, OUTER, EMPTY, INNER],  # an empty mask is no object and takes no number
        [INNER, rectangle(15, 15, 25, 25), OUTER],  # two with the same area
        [rectangle(15, 15, 25, 25), INNER],
        [np.ones(SIZE, np.bool_), INNER, np.ones(SIZE, np.bool_)],
        [INNER, INNER],
    ],
)
def test_the_smaller_object_lies_on_top(fulls: list[NDArray[np.bool_]]) -> None:
    image = drawn("label_png", fulls)
    np.testing.assert_array_equal(image, expected(fulls))
    union = drawn("mask_png", fulls)
    assert union.dtype == np.uint8
    np.testing.assert_array_equal(union, np.where(np.any(fulls, axis=0), 255, 0))


def test_random_masks_in_every_order() -> None:
    generator = np.random.default_rng(5)
    for _ in range(20):
        fulls = []
        for _ in range(generator.integers(1, 9)):
            x, y = generator.integers(0, 50, 2)
            part = rectangle(x, y % 30, x + 30, y % 30 + 30)
            fulls.append(part & (generator.random(SIZE) < generator.random()))
        if any(full.any() for full in fulls):
            np.testing.assert_array_equal(drawn("label_png", fulls), expected(fulls))


def test_a_mask_wider_and_higher_than_a_strip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "_PIXELS_AT_ONCE", 7)
    test_the_smaller_object_lies_on_top([OUTER, INNER, ASIDE])


@pytest.mark.parametrize("name", ["label_png", "mask_png"])
def test_nothing_found_is_black(name: str) -> None:
    image = drawn(name, [])
    assert image.shape == SIZE
    assert not image.any()


def test_as_many_objects_as_there_are_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (257, 256)
    pixels = np.arange(65_792).reshape(size)
    masks = [
        ObjectMask(np.ones((1, 1), np.bool_), Box(x, y, x + 1, y + 1), size, 0.5)
        for y in range(257)
        for x in range(256)
    ]
    body, qualities = BY_NAME["label_png"].write(content(masks[:65_535], size))
    assert qualities is not None
    assert len(qualities) == 65_535
    image = read(body)
    np.testing.assert_array_equal(image, np.where(pixels < 65_535, pixels + 1, 0))
    with pytest.raises(TooLarge, match="more than 65535 objects") as refused:
        BY_NAME["label_png"].write(content(masks[:65_536], size))
    assert refused.value.field == "output_format"
    body, _ = BY_NAME["mask_png"].write(content(masks, size))
    assert read(body).all()


def test_it_asks_before_it_takes_memory() -> None:
    """A picture that would not fit anywhere is refused before the canvas is made."""

    def refuse(vertices: int, seconds: float) -> None:
        assert seconds > 1
        raise TooLarge("no")

    for name in ("label_png", "mask_png"):
        with pytest.raises(TooLarge, match="no"):
            BY_NAME[name].write(content([], (10**6, 10**6), allow=refuse))


def test_an_image_over_the_limit_of_bytes() -> None:
    noise = mask_of(np.random.default_rng(1).random(SIZE) < 0.5)
    for name in ("label_png", "mask_png"):
        with pytest.raises(TooLarge, match="this server's limit is 100"):
            BY_NAME[name].write(content([noise], max_bytes=100))


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("image/png", "label_png"),
        ("image/png, application/json", "features"),
        ("image/png, application/json;q=0.5", "label_png"),
        ("image/*", "features"),
        ("text/html, image/png;q=0.5, */*;q=0.8", "features"),
    ],
)
def test_by_accept(accept: str, name: str) -> None:
    assert chosen(None, accept).name == name
