"""Decoded pixels are compared with pixels that were computed by hand.

Lossless files must give exactly the pixels they were made from.
"""

from __future__ import annotations

import struct
import warnings
from io import BytesIO

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from samserve.pictures.decoding import decode_image
from tests.support.picture_files import (
    BITMAP,
    COLOUR16,
    FLOAT,
    GREY,
    GREY_ALPHA,
    HEIGHT,
    HUGE,
    INDEX,
    INKS,
    LIMIT,
    OF_INKS,
    PALETTE,
    PLANES,
    RGB,
    RGB16_TAGS,
    RGB_TAGS,
    RGBA,
    SIGNED,
    SMOOTH,
    WIDE,
    WIDTH,
    grey3,
    paletted,
    png,
    save,
    scaled,
    stretched,
    tiff,
)

EXACT: dict[str, tuple[bytes, NDArray[np.uint8]]] = {
    "png-1": (save(BITMAP, "PNG"), grey3(BITMAP * 255)),
    "png-grey-4bit": (png(3, 1, 4, 0, [b"\x0f\x70"]), grey3([[0, 255, 119]])),
    "png-L": (save(GREY, "PNG"), grey3(GREY)),
    "png-L-transparent-colour": (save(GREY, "PNG", transparency=int(GREY[0, 0])), grey3(GREY)),
    "png-LA": (save(GREY_ALPHA, "PNG"), grey3(GREY)),
    "png-P": (save(paletted(), "PNG"), PALETTE[INDEX]),
    "png-P-one-transparent": (save(paletted(), "PNG", transparency=2), PALETTE[INDEX]),
    "png-P-alphas": (save(paletted(), "PNG", transparency=b"\0\x80\x10"), PALETTE[INDEX]),
    "png-RGB": (save(RGB, "PNG"), RGB),
    "png-RGB-transparent-colour": (save(RGB, "PNG", transparency=(1, 2, 3)), RGB),
    "png-RGBA": (save(RGBA, "PNG"), RGB),
    "png-grey-16bit": (save(WIDE, "PNG"), stretched(WIDE)),
    "png-grey-alpha-16bit": (
        png(WIDTH, HEIGHT, 16, 4, [row.astype(">u2").tobytes() for row in COLOUR16[..., :2]]),
        grey3(scaled(COLOUR16[..., 0])),
    ),
    "png-RGB-16bit": (
        png(WIDTH, HEIGHT, 16, 2, [row.astype(">u2").tobytes() for row in COLOUR16[..., :3]]),
        scaled(COLOUR16[..., :3]),
    ),
    "png-RGBA-16bit": (
        png(WIDTH, HEIGHT, 16, 6, [row.astype(">u2").tobytes() for row in COLOUR16]),
        scaled(COLOUR16[..., :3]),
    ),
    "png-animated": (
        save(RGB, "PNG", save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        RGB,
    ),
    "webp-RGB": (save(RGB, "WEBP", lossless=True), RGB),
    "webp-RGBA": (save(RGBA, "WEBP", lossless=True, exact=True), RGB),
    "webp-animated": (
        save(RGB, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - RGB)]),
        RGB,
    ),
    "bmp-1": (save(BITMAP, "BMP"), grey3(BITMAP * 255)),
    "bmp-L": (save(GREY, "BMP"), grey3(GREY)),
    "bmp-P": (save(paletted(), "BMP"), PALETTE[INDEX]),
    "bmp-RGB": (save(RGB, "BMP"), RGB),
    "bmp-RGBA": (save(RGBA, "BMP"), RGB),
    "tiff-1": (save(BITMAP, "TIFF"), grey3(BITMAP * 255)),
    "tiff-1-group4": (save(BITMAP, "TIFF", compression="group4"), grey3(BITMAP * 255)),
    "tiff-L": (save(GREY, "TIFF"), grey3(GREY)),
    "tiff-L-white-is-zero": (tiff([GREY.tobytes()], {262: 0}), grey3(255 - GREY)),
    "tiff-LA": (save(GREY_ALPHA, "TIFF"), grey3(GREY)),
    "tiff-P": (save(paletted(), "TIFF"), PALETTE[INDEX]),
    "tiff-PA": (save(paletted(), "TIFF", "PA"), PALETTE[INDEX]),
    "tiff-RGB": (save(RGB, "TIFF"), RGB),
    "tiff-RGB-lzw": (save(RGB, "TIFF", compression="tiff_lzw"), RGB),
    "tiff-RGB-deflate": (save(RGB, "TIFF", compression="tiff_adobe_deflate"), RGB),
    "tiff-RGB-packbits": (save(RGB, "TIFF", compression="packbits"), RGB),
    "tiff-RGB-strips": (tiff([row.tobytes() for row in RGB], RGB_TAGS | {278: 1}), RGB),
    "tiff-RGB-planes": (tiff(PLANES, RGB_TAGS | {284: 2}), RGB),
    "tiff-RGB-big-endian": (tiff([RGB.tobytes()], RGB_TAGS, order=">"), RGB),
    "tiff-RGB-16bit": (tiff([COLOUR16[..., :3].tobytes()], RGB16_TAGS), scaled(COLOUR16[..., :3])),
    "tiff-RGB-16bit-big-endian": (
        tiff([COLOUR16[..., :3].astype(">u2").tobytes()], RGB16_TAGS, order=">"),
        scaled(COLOUR16[..., :3]),
    ),
    "tiff-RGBA": (save(RGBA, "TIFF"), RGB),
    "tiff-RGBX": (
        tiff([RGBA.tobytes()], {258: (8, 8, 8, 8), 262: 2, 277: 4, 338: 0}),
        RGB,
    ),
    "tiff-RGBA-16bit": (
        tiff([COLOUR16.tobytes()], {258: (16, 16, 16, 16), 262: 2, 277: 4, 338: 2}),
        scaled(COLOUR16[..., :3]),
    ),
    "tiff-grey-times-alpha": (
        tiff([bytes([100, 200, 50, 255])], {258: (8, 8), 277: 2, 338: 1}, size=(2, 1)),
        grey3([[100 * 255 // 200, 50]]),
    ),
    "tiff-colour-times-alpha": (
        tiff(
            [bytes([100, 50, 0, 200, 9, 8, 7, 255])],
            {258: (8, 8, 8, 8), 262: 2, 277: 4, 338: 1},
            size=(2, 1),
        ),
        np.array([[[100 * 255 // 200, 50 * 255 // 200, 0], [9, 8, 7]]], np.uint8),
    ),
    "tiff-CMYK": (tiff([INKS.tobytes()], {258: (8,) * 4, 262: 5, 277: 4}), OF_INKS),
    "tiff-YCbCr-greys": (
        tiff(
            [np.dstack([GREY, *[np.full_like(GREY, 128)] * 2]).tobytes()],
            {258: (8, 8, 8), 262: 6, 277: 3, 530: (1, 1)},
        ),
        grey3(GREY),
    ),
    "tiff-grey-12bit": (
        tiff([bytes([0x00, 0x00, 0x66, 0xFF, 0xF0, 0x00])], {258: 12}, size=(4, 1)),
        grey3([[0, round(0x066 / 0xFFF * 255), 255, 0]]),
    ),
    "tiff-grey-16bit": (save(WIDE, "TIFF"), stretched(WIDE)),
    "tiff-grey-16bit-lzw": (save(WIDE, "TIFF", compression="tiff_lzw"), stretched(WIDE)),
    "tiff-grey-16bit-big-endian": (
        tiff([WIDE.astype(">u2").tobytes()], {258: 16}, order=">"),
        stretched(WIDE),
    ),
    "tiff-grey-16bit-white-is-zero": (
        tiff([WIDE.tobytes()], {258: 16, 262: 0}),
        stretched(-WIDE.astype(np.int32)),
    ),
    "tiff-grey-16bit-signed": (tiff([SIGNED.tobytes()], {258: 16, 339: 2}), stretched(SIGNED)),
    "tiff-grey-8bit-signed": (
        tiff([GREY.tobytes()], {339: 2}),
        stretched(GREY.view(np.int8)),
    ),
    "tiff-grey-32bit": (tiff([HUGE.tobytes()], {258: 32}), stretched(HUGE)),
    "tiff-grey-32bit-signed": (
        tiff([SIGNED.astype(np.int32).tobytes()], {258: 32, 339: 2}),
        stretched(SIGNED),
    ),
    "tiff-float": (tiff([FLOAT.tobytes()], {258: 32, 339: 3}), stretched(WIDE)),
    "tiff-double": (tiff([FLOAT.astype(float).tobytes()], {258: 64, 339: 3}), stretched(WIDE)),
    "tiff-two-pages": (
        save(RGB, "TIFF", save_all=True, append_images=[Image.new("RGB", (2, 2))]),
        RGB,
    ),
}


@pytest.mark.parametrize(
    ("data", "expected"),
    [pytest.param(*case, id=name) for name, case in EXACT.items()],
)
def test_lossless_pixels_are_exact(data: bytes, expected: NDArray[np.uint8]) -> None:
    pixels = decode_image(data, LIMIT)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable  # torch.from_numpy warns otherwise
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(save(SMOOTH, "JPEG", quality=95), id="jpeg-RGB"),
        pytest.param(save(SMOOTH, "JPEG", quality=95, progressive=True), id="jpeg-RGB-progressive"),
        pytest.param(save(SMOOTH, "JPEG", "CMYK", quality=95), id="jpeg-CMYK"),
        pytest.param(
            save(
                SMOOTH, "MPO", quality=95, save_all=True, append_images=[Image.new("RGB", (8, 8))]
            ),
            id="jpeg-of-several-pictures",
        ),
        pytest.param(save(SMOOTH, "WEBP", quality=95), id="webp-lossy"),
        pytest.param(save(SMOOTH, "TIFF", compression="jpeg", quality=95), id="tiff-jpeg"),
        pytest.param(save(SMOOTH, "TIFF", "YCbCr"), id="tiff-YCbCr"),
        pytest.param(save(SMOOTH, "TIFF", "LAB"), id="tiff-LAB"),
    ],
)
def test_lossy_pixels_are_close(data: bytes) -> None:
    difference = np.abs(decode_image(data, LIMIT).astype(int) - SMOOTH)
    assert difference.mean() < 3
    assert difference.max() < 20  # CIELAB leaves sRGB's gamut, and is clipped


def test_lossy_grey() -> None:
    pixels = decode_image(save(SMOOTH[..., 0], "JPEG", quality=95), LIMIT)
    assert np.abs(pixels.astype(int) - SMOOTH[..., :1]).max() < 5


class TestStretching:
    def float_tiff(self, *values: float) -> bytes:
        row = np.array(values, np.float32)
        return tiff([row.tobytes()], {258: 32, 339: 3}, size=(len(values), 1))

    def test_ties_go_to_the_even_number(self) -> None:
        pixels = decode_image(self.float_tiff(0, 0.5, 1.5, 2.5, 254.5, 255), LIMIT)
        assert pixels[0, :, 0].tolist() == [0, 0, 2, 2, 254, 255]

    def test_numbers_that_are_not_finite_are_left_out(self) -> None:
        data = self.float_tiff(np.nan, 10, np.inf, 20, -np.inf, 12)
        assert decode_image(data, LIMIT)[0, :, 0].tolist() == [0, 0, 0, 255, 0, 51]

    def test_white_is_zero_leaves_what_is_not_finite_black(self) -> None:
        row = np.array([np.nan, 10, 20, 12], np.float32)
        data = tiff([row.tobytes()], {258: 32, 339: 3, 262: 0}, size=(4, 1))
        assert decode_image(data, LIMIT)[0, :, 0].tolist() == [0, 255, 0, 204]

    @pytest.mark.parametrize("values", [(7.5, 7.5), (np.nan, np.inf), (np.nan, 3)])
    def test_without_a_range_all_is_black(self, values: tuple[float, float]) -> None:
        assert not decode_image(self.float_tiff(*values), LIMIT).any()

    def test_the_largest_range_does_not_overflow(self) -> None:
        most = float(np.finfo(np.float32).max)
        assert decode_image(self.float_tiff(-most, 0, most), LIMIT)[0, :, 0].tolist() == [
            0,
            128,
            255,
        ]

    def test_constant_16_bit_is_black(self) -> None:
        assert not decode_image(save(np.full((3, 4), 40_000, np.uint16), "PNG"), LIMIT).any()


class TestOrientation:
    """Coordinates refer to the pixels as stored, so nothing may turn the picture."""

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF-LZW"])
    def test_it_is_ignored(self, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[274] = orientation
        data = {
            "PNG": lambda: save(RGB, "PNG", exif=exif),
            "WEBP": lambda: save(RGB, "WEBP", lossless=True, exif=exif),
            "TIFF": lambda: tiff([RGB.tobytes()], RGB_TAGS | {274: orientation}),
            "TIFF-LZW": lambda: save(
                RGB, "TIFF", compression="tiff_lzw", tiffinfo={274: orientation}
            ),
        }[kind]()
        np.testing.assert_array_equal(decode_image(data, LIMIT), RGB)

    def test_in_jpeg(self) -> None:
        exif = Image.Exif()
        exif[274] = 6
        turned, plain = save(SMOOTH, "JPEG", exif=exif), save(SMOOTH, "JPEG")
        np.testing.assert_array_equal(decode_image(turned, LIMIT), decode_image(plain, LIMIT))

    def test_in_xmp(self) -> None:
        data = tiff([RGB.tobytes()], RGB_TAGS | {700: b'<x tiff:Orientation="6"/>'})
        np.testing.assert_array_equal(decode_image(data, LIMIT), RGB)

    def test_in_a_16_bit_tiff(self) -> None:
        data = tiff([WIDE.tobytes()], {258: 16, 274: 8})
        np.testing.assert_array_equal(decode_image(data, LIMIT), stretched(WIDE))


def test_odd_metadata_causes_no_warning() -> None:
    # a tag of 1000 bytes at an address beyond the end of the file
    data = bytearray(tiff([RGB.tobytes()], RGB_TAGS | {306: 0}))
    at = data.index(struct.pack("<HHI", 306, 4, 1))
    data[at : at + 12] = struct.pack("<HHII", 306, 2, 1000, 1 << 20)
    with pytest.warns(UserWarning, match="Tag data larger|Truncated"):
        Image.open(BytesIO(data))

    filters = list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(decode_image(bytes(data), LIMIT), RGB)
    assert warnings.filters == filters
