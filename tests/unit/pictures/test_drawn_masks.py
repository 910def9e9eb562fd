"""A drawn mask becomes logits over the network's input frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samserve.errors import InvalidField, SamserveError, TooLarge
from samserve.pictures.decoding import Decoded, decode_page
from samserve.pictures.drawn_masks import _brighter, mask_input
from tests.support.sample_pictures import base64_png

LIMIT = 10**7
CERTAIN = np.log(0.999 / 0.001)


def input_size(height: int, width: int) -> tuple[int, int]:
    """Return the (height, width) of an image that is resized to the network's input."""
    scale = 1024 / max(height, width)
    return int(height * scale + 0.5), int(width * scale + 0.5)


def logits(mask: NDArray[Any], height: int, width: int) -> NDArray[np.float32]:
    sizes = (height, width), input_size(height, width)
    return mask_input(base64_png(mask), *sizes, LIMIT, "b64mask")


@pytest.mark.parametrize(("height", "width"), [(600, 800), (2048, 1024), (90, 60), (256, 256)])
def test_a_mask_of_the_images_size_lies_where_the_image_does(height: int, width: int) -> None:
    mask = np.zeros((height, width), np.uint8)
    mask[: height // 2, : width // 2] = 255
    found = logits(mask, height, width)
    in_h, in_w = input_size(height, width)
    expected = np.full((256, 256), -CERTAIN, np.float32)
    expected[: in_h // 8, : in_w // 8] = CERTAIN
    # A smaller image is enlarged, which blurs the edge over one of its pixels: skip those cells.
    blur = 1 + int(np.ceil(in_h / height / 4))
    sure = np.ones((256, 256), np.bool_)
    sure[in_h // 8 - blur : in_h // 8 + blur, :] = False
    sure[:, in_w // 8 - blur : in_w // 8 + blur] = False
    assert found.shape == (256, 256)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[sure], expected[sure], rtol=1e-4)
    assert (np.abs(found) <= CERTAIN * 1.0001).all()


def test_a_cell_says_how_much_of_it_is_the_objects() -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[0:4, 0:3] = 255  # three quarters of the first cell
    mask[0:4, 6:8] = 255  # half of the second
    found = logits(mask, 1024, 1024)
    assert found[0, 0] == pytest.approx(np.log(3), rel=1e-5)
    assert found[0, 1] == pytest.approx(0, abs=1e-6)
    assert found[1, 0] == pytest.approx(-CERTAIN, rel=1e-5)


def test_256_square_is_the_networks_own_frame() -> None:
    mask = np.zeros((256, 256), np.uint8)
    mask[10:20, 30:40] = 255
    found = logits(mask, 600, 800)
    np.testing.assert_allclose(found, np.where(mask, CERTAIN, -CERTAIN), rtol=1e-4)


@pytest.mark.parametrize(
    "drawn",
    [
        np.array([0, 1], np.uint8),
        np.array([0, 255], np.uint8),
        np.array([3, 250], np.uint8),  # as after JPEG compression
        np.array([0, 40_000], np.uint16),
        np.array([[0, 0, 0], [255, 0, 0]], np.uint8),
    ],
    ids=["0 and 1", "0 and 255", "nearly", "16 bits", "colour"],
)
def test_object_is_what_is_bright(drawn: NDArray[Any]) -> None:
    which = np.zeros((256, 256), np.intp)
    which[5:9, 5:9] = 1
    found = logits(drawn[which], 600, 800)
    np.testing.assert_array_equal(found > 0, which == 1)


@pytest.mark.parametrize("size", [(255, 256), (800, 600), (1, 1), (1024, 1024)])
def test_another_size_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(InvalidField, match=rf"{size[1]} ?x ?{size[0]}.*; it must be 800x600"):
        logits(np.full(size, 255, np.uint8), 600, 800)


@pytest.mark.parametrize("shape", [(601, 800), (600, 801), (3000, 4000)])
def test_a_mask_larger_than_the_image_is_not_decoded(shape: tuple[int, int]) -> None:
    def decode(data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
        assert max_pixels == 600 * 800
        return decode_page(data[:-200], max_pixels, field, page)  # decoding it would fail

    text = base64_png(np.random.default_rng(0).integers(0, 255, shape, np.uint8))
    with pytest.raises(InvalidField, match=f"{shape[1]} x {shape[0]} pixels") as refused:
        mask_input(text, (600, 800), input_size(600, 800), LIMIT, "b64mask", decode)
    assert refused.value.field == "b64mask"


@pytest.mark.parametrize("brightest", [1, 2, 3, 128, 255])
def test_brighter_than_half_in_any_channel(brightest: int) -> None:
    """By the definition, in more rows than are read at once."""
    colours = np.random.default_rng(brightest).integers(0, brightest + 1, (1500, 700, 3), np.uint8)
    colours[0, 0] = brightest
    expected = (colours.max(axis=2) > brightest / 2).astype(np.float32)
    assert np.array_equal(_brighter(colours, brightest // 2), expected)


def test_a_mask_without_an_object_is_refused() -> None:
    with pytest.raises(InvalidField, match="no object"):
        logits(np.zeros((256, 256), np.uint8), 600, 800)


def test_no_mask_at_all() -> None:
    sizes = (9, 9), input_size(9, 9)
    for text in ("", "%%%", "QUJD"):
        with pytest.raises(SamserveError) as refused:
            mask_input(text, *sizes, LIMIT, "prompts.3.b64mask")
        assert refused.value.field == "prompts.3.b64mask"
    with pytest.raises(TooLarge):
        mask_input(base64_png(np.full((99, 99), 9, np.uint8)), *sizes, 1000, "b64mask")
