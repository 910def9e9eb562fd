"""Base64 and picture bytes -> RGB, against pixels worked out by hand.

Lossless files must give exactly the pixels they were made from. Files that Pillow
cannot write (16-bit colour, odd TIFFs, headers that lie) are put together here byte
by byte.
"""

from __future__ import annotations

import base64
import random
import struct
import warnings
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from samserve.errors import InvalidField, InvalidImage, SamserveError, TooLarge
from samserve.pictures.picture import decode_base64, decode_image

LIMIT = 1_000_000
HEIGHT, WIDTH = 5, 7

# 5 rows of 7 pixels, every value different from its neighbours, alpha 0 among them
RGBA = (np.arange(HEIGHT * WIDTH * 4, dtype=np.uint8).reshape(HEIGHT, WIDTH, 4) * 73) & 0xFF
RGBA[1, 2, 3] = 0
RGB = np.ascontiguousarray(RGBA[..., :3])
GREY = np.ascontiguousarray(RGBA[..., 0])
WIDE = GREY.astype(np.uint16) * 200 + 1000
INDEX = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH) % 6
PALETTE = np.array(
    [[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200], [255, 255, 255], [1, 2, 3]], np.uint8
)


def save(
    pixels: NDArray[Any] | Image.Image, kind: str, mode: str | None = None, **how: Any
) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    stream = BytesIO()
    (image if mode is None else image.convert(mode)).save(stream, kind, **how)
    return stream.getvalue()


def paletted() -> Image.Image:
    image = Image.fromarray(INDEX)
    image.putpalette(PALETTE.tobytes())
    return image


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, depth: int, colour: int, rows: Sequence[bytes] = ()) -> bytes:
    """A PNG; without rows, only its signature and header."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    if not rows:
        return start
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return start + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


TiffTag = int | Sequence[int] | bytes


def tiff(
    strips: Sequence[bytes],
    tags: dict[int, TiffTag] | None = None,
    *,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    order: str = "<",
    offsets_tag: int = 273,
) -> bytes:
    """An uncompressed TIFF: header, directory, long values, then the strips as given."""
    entries: dict[int, TiffTag] = {256: size[0], 257: size[1], 258: 8, 259: 1, 262: 1, 277: 1}
    entries.update(tags or {})
    entries[offsets_tag] = entries[offsets_tag + (6 if offsets_tag == 273 else 1)] = [0] * len(
        strips
    )
    long_values_at = 8 + 2 + 12 * len(entries) + 4
    long_size = sum(
        len(value) * (1 if isinstance(value, bytes) else 4)
        for value in entries.values()
        if not isinstance(value, int) and len(value) > 1
    )
    lengths = [len(strip) for strip in strips]
    starts = [long_values_at + long_size + sum(lengths[:i]) for i in range(len(strips))]
    entries[offsets_tag] = starts
    entries[offsets_tag + (6 if offsets_tag == 273 else 1)] = lengths

    directory, long_values = struct.pack(order + "H", len(entries)), b""
    for tag, value in sorted(entries.items()):
        values = [value] if isinstance(value, int) else list(value)
        type_, letter = (1, "B") if isinstance(value, bytes) else (4, "I")
        body = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(body) > 4:
            where = long_values_at + len(long_values)
            long_values += body
            body = struct.pack(order + "I", where)
        directory += struct.pack(order + "HHI", tag, type_, len(values)) + body.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    head = mark + struct.pack(order + "I", 8) + directory + bytes(4) + long_values
    return head + b"".join(strips)


def grey3(values: ArrayLike) -> NDArray[np.uint8]:
    grey = np.asarray(values, np.uint8)
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)


def stretched(values: NDArray[Any]) -> NDArray[np.uint8]:
    low, high = int(values.min()), int(values.max())
    return grey3([[round((int(v) - low) * 255 / (high - low)) for v in row] for row in values])


SIGNED = WIDE.astype(np.int16) - 20000
HUGE = WIDE.astype(np.uint32) * 80_000  # beyond what 32 signed bits hold
FLOAT = WIDE.astype(np.float32) / 7 - 900
COLOUR16 = (np.arange(HEIGHT * WIDTH * 4).reshape(HEIGHT, WIDTH, 4) * 2749 % 65536).astype(
    np.uint16
)


def scaled(colour: NDArray[Any]) -> NDArray[np.uint8]:
    """One factor makes the largest value 255."""
    return np.rint(colour.astype(np.float64) * 255 / int(colour.max())).astype(np.uint8)


BITMAP = GREY > 127
INKS = np.where(RGBA > 127, 255, 0).astype(np.uint8)
OF_INKS = np.where(INKS[..., 3:] == 255, 0, 255 - INKS[..., :3]).astype(np.uint8)
GREY_ALPHA = np.ascontiguousarray(RGBA[..., [0, 3]])
PLANES = [RGB[..., band].tobytes() for band in range(3)]
RGB_TAGS: dict[int, TiffTag] = {258: (8, 8, 8), 262: 2, 277: 3}
RGB16_TAGS: dict[int, TiffTag] = {258: (16, 16, 16), 262: 2, 277: 3}

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


SMOOTH = np.stack(
    [
        np.tile(np.linspace(20, 220, 48), (32, 1)),
        np.tile(np.linspace(200, 60, 32)[:, np.newaxis], (1, 48)),
        np.full((32, 48), 120.0),
    ],
    axis=2,
).astype(np.uint8)


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


def webp_header(name: bytes, body: bytes) -> bytes:
    return b"RIFF\x40\0\0\0WEBP" + name + struct.pack("<I", len(body)) + body


HUGE_HEADERS = {
    "png": (png(100_000, 100_000, 8, 2), 100_000, 100_000),
    "jpeg": (
        b"\xff\xd8\xff\xc0\0\x0b\x08\xff\xdc\xff\xdc\x01\x01\x11\0\xff\xda\0\x08\x01\x01\0\0\x3f\0",
        65_500,
        65_500,
    ),
    "bmp": (
        b"BM" + bytes(8) + struct.pack("<IIiiHH24x", 54, 40, 90_000, 80_000, 1, 24),
        90_000,
        80_000,
    ),
    "tiff": (tiff([b""], RGB_TAGS, size=(70_000, 60_000)), 70_000, 60_000),
    "tiff-turned": (tiff([b""], RGB_TAGS | {274: 6}, size=(60_000, 70_000)), 60_000, 70_000),
    "webp-lossy": (
        webp_header(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + struct.pack("<HH", 16_383, 16_383)),
        16_383,
        16_383,
    ),
    "webp-lossless": (
        webp_header(b"VP8L", b"\x2f" + struct.pack("<I", 16_383 | 16_382 << 14) + bytes(9)),
        16_384,
        16_383,
    ),
    "webp-extended": (
        webp_header(b"VP8X", bytes(4) + b"\xff\xff\xff\x3f\x42\x0f"),
        1 << 24,
        1_000_000,
    ),
}


class TestLimit:
    @pytest.fixture(autouse=True)
    def no_picture_is_allocated(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Every decoder of Pillow begins by asking for the picture's memory here."""

        def fail(*_: object) -> None:
            pytest.fail("decoding began")

        monkeypatch.setattr("PIL.Image.core.new", fail)

    @pytest.mark.parametrize(
        ("data", "width", "height"), HUGE_HEADERS.values(), ids=HUGE_HEADERS.keys()
    )
    def test_a_header_without_pixels_is_enough(self, data: bytes, width: int, height: int) -> None:
        with pytest.raises(TooLarge) as caught:
            decode_image(data, LIMIT, "b64mask")
        assert caught.value.message == (
            f"the image is {width} x {height} pixels; the limit is 1000000 pixels"
        )
        assert caught.value.field == "b64mask"

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
    def test_one_pixel_too_many(self, kind: str) -> None:
        with pytest.raises(TooLarge, match="7 x 5 pixels; the limit is 34 pixels"):
            decode_image(save(RGB, kind), HEIGHT * WIDTH - 1)

    def test_a_small_picture_in_a_huge_tile(self) -> None:
        tags = RGB_TAGS | {259: 8, 322: 46_000, 323: 46_000}
        with pytest.raises(InvalidImage, match="tiles are of 2116000000 pixels"):
            decode_image(tiff([b"x"], tags, offsets_tag=324), LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_as_many_pixels_as_the_limit_are_decoded(kind: str) -> None:
    assert decode_image(save(RGB, kind), HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)


def test_pillows_own_limit_does_not_interfere() -> None:
    # over 179 million pixels, where Pillow by itself refuses
    data = save(Image.new("1", (15_000, 12_000)), "PNG")
    with pytest.raises(TooLarge):
        decode_image(data, 15_000 * 12_000 - 1)
    with Image.open(BytesIO(data)) as image:
        assert image.size == (15_000, 12_000)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png(0, 5, 8, 2, [b""]), id="png-no-width"),
        pytest.param(png(5, 0, 8, 2), id="png-no-height"),
        pytest.param(b"\xff\xd8\xff\xc0\0\x0b\x08\0\0\0\x05\x01\x01\x11\0", id="jpeg"),
        pytest.param(b"BM" + bytes(8) + struct.pack("<IIiiHH24x", 54, 40, 0, 5, 1, 24), id="bmp"),
        pytest.param(tiff([b""], RGB_TAGS, size=(0, 5)), id="tiff"),
        pytest.param(webp_header(b"VP8 ", b"\x10\0\0\x9d\x01\x2a" + bytes(4)), id="webp"),
    ],
)
def test_a_picture_without_pixels(data: bytes) -> None:
    with pytest.raises(InvalidImage):
        decode_image(data, LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"hello, world", id="text"),
        pytest.param(b"\x89PNG", id="half-a-signature"),
        pytest.param(save(RGB, "GIF"), id="gif"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", id="svg"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", id="postscript"),
    ],
)
def test_what_is_no_image_we_read(data: bytes) -> None:
    with pytest.raises(InvalidImage, match="PNG, JPEG, TIFF, WebP or BMP") as caught:
        decode_image(data, LIMIT, "prompts.2.b64mask")
    assert caught.value.field == "prompts.2.b64mask"


UNREADABLE = {
    "five-channels": (
        tiff([bytes(175)], {258: (8,) * 5, 277: 5}),
        r"samples 5, bits \(8, 8, 8, 8, 8\)",
    ),
    "unknown-compression": (tiff([bytes(35)], {259: 4242}), "compression 4242"),
    "a-list-of-bits-without-end": (
        tiff([bytes(35)], {258: (8,) * 10_000, 262: 99}),
        "bits .{40}, ",
    ),
    "subsampled-YCbCr": (
        tiff([bytes(105)], {258: (8,) * 3, 262: 6, 277: 3}),
        "without subsampling only",
    ),
    "missing-strips": (tiff([RGB[0].tobytes()], RGB_TAGS | {278: 1}), "do not cover"),
    "surplus-strips": (
        tiff([GREY.tobytes()] * 9, {278: HEIGHT - 1}),
        "do not cover",
    ),
}


@pytest.mark.parametrize(("data", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_a_tiff_that_cannot_be_read_says_what_it_is(data: bytes, message: str) -> None:
    with pytest.raises(InvalidImage, match=message) as caught:
        decode_image(data, LIMIT)
    assert len(caught.value.message) < 300


def test_run_length_bmp_is_refused() -> None:
    header = struct.pack("<IIiiHHIIiiII", 1078, 40, 4, 1, 1, 8, 1, 4, 0, 0, 0, 0)
    data = b"BM" + bytes(8) + header + bytes(1024) + b"\x04\x07\0\x01"
    with pytest.raises(InvalidImage, match="run-length"):
        decode_image(data, LIMIT)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = save(GREY, "JPEG", progressive=True)
    last_scan = data[data.rindex(b"\xff\xda") : -2]
    decode_image(data[:-2] + last_scan * 50 + data[-2:], LIMIT)
    with pytest.raises(InvalidImage, match="more than 200 scans"):
        decode_image(data[:-2] + last_scan * 200 + data[-2:], LIMIT)


# more than the 64 KiB that Pillow reads at a time
NOISE = np.random.default_rng(0).integers(0, 256, (150, 210, 3), np.uint8)
TO_CUT = {
    "png": save(RGBA, "PNG"),
    "png-P": save(paletted(), "PNG", transparency=b"\0\x80"),
    "png-16bit": save(WIDE, "PNG"),
    "png-of-many-chunks": save(NOISE, "PNG"),
    "jpeg": save(SMOOTH, "JPEG"),
    "jpeg-progressive": save(SMOOTH, "JPEG", progressive=True),
    "jpeg-noise": save(NOISE, "JPEG", quality=100),
    "tiff": save(RGB, "TIFF"),
    "tiff-noise": save(NOISE, "TIFF"),
    "tiff-strips": tiff([row.tobytes() for row in RGB], RGB_TAGS | {278: 1}),
    "tiff-lzw": save(RGB, "TIFF", compression="tiff_lzw"),
    "tiff-deflate": save(RGB, "TIFF", compression="tiff_adobe_deflate"),
    "tiff-packbits": save(RGB, "TIFF", compression="packbits"),
    "tiff-jpeg": save(SMOOTH, "TIFF", compression="jpeg"),
    "tiff-group3": save(BITMAP, "TIFF", compression="group3"),
    "tiff-group4": save(BITMAP, "TIFF", compression="group4"),
    "webp": save(SMOOTH, "WEBP"),
    "webp-lossless": save(RGBA, "WEBP", lossless=True),
    "webp-animated": save(
        SMOOTH, "WEBP", save_all=True, append_images=[Image.new("RGB", (48, 32))]
    ),
    "bmp": save(RGB, "BMP"),
    "bmp-P": save(paletted(), "BMP"),
    "bmp-noise": save(NOISE, "BMP"),
}


@pytest.mark.parametrize("data", TO_CUT.values(), ids=TO_CUT.keys())
def test_a_cut_file_never_gives_an_incomplete_picture(data: bytes) -> None:
    whole = decode_image(data, LIMIT)
    # everywhere in small files; in large ones here and there, and in the last bytes
    step = max(1, len(data) // 300)
    cuts = sorted({*range(0, len(data), step), *range(max(0, len(data) - 50), len(data))})
    refused = 0
    for cut in cuts:
        try:
            pixels = decode_image(data[:cut], LIMIT)
        except InvalidImage:
            refused += 1
        else:
            np.testing.assert_array_equal(pixels, whole, err_msg=f"cut at {cut}")
    assert refused > len(cuts) / 3


def test_a_cut_file_is_called_truncated() -> None:
    for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP"):
        data = save(NOISE, kind)
        with pytest.raises(InvalidImage, match=f"the {kind} is truncated or damaged") as caught:
            decode_image(data[: len(data) // 2], LIMIT)
        assert caught.value.__cause__ is not None


def mutated(data: bytes, dice: random.Random) -> bytes:
    """Some bytes changed, cut out, doubled or set to what parsers stumble over."""
    result = bytearray(data)
    for _ in range(dice.choice([1, 1, 2, 4])):
        at = dice.randrange(min(len(result), dice.choice([64, 300, len(result)])))
        what = dice.randrange(4)
        if what == 0:
            result[at] = dice.randrange(256)
        elif what == 1:
            number = dice.choice([0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF, 5000])
            result[at : at + 4] = number.to_bytes(4, dice.choice(["little", "big"]))
        elif what == 2:
            del result[at : at + dice.randrange(1, 9)]
        else:
            result[at:at] = result[at : at + dice.randrange(1, 9)]
        if len(result) < 16:
            return bytes(result)
    return bytes(result)


def with_right_checksums(data: bytes) -> bytes:
    """A PNG's chunks, so that a mutation gets past their checksums."""
    result, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        result += chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return result


def picture_or_samserve_error(data: bytes) -> None:
    try:
        pixels = decode_image(data, LIMIT)
    except SamserveError:
        return
    assert pixels.dtype == np.uint8
    assert pixels.ndim == 3
    assert pixels.shape[2] == 3
    assert 0 < pixels.shape[0] * pixels.shape[1] <= LIMIT


@pytest.mark.parametrize("name", TO_CUT.keys())
def test_mutated_bytes_give_a_picture_or_our_error(name: str) -> None:
    dice = random.Random(name)
    for turn in range(100):
        data = mutated(TO_CUT[name], dice)
        if name.startswith("png") and turn % 4:
            data = with_right_checksums(data)
        picture_or_samserve_error(data)


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0\x08\0\0\0", b"MM\0+", b"BM"]),
    st.binary(max_size=300),
)
def test_any_bytes_after_a_signature(signature: bytes, rest: bytes) -> None:
    picture_or_samserve_error(signature + rest)


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


class TestBase64:
    BYTES = bytes(range(256))
    TEXT = base64.b64encode(BYTES).decode()

    @pytest.mark.parametrize(
        "text",
        [
            pytest.param(TEXT, id="plain"),
            pytest.param("data:image/png;base64," + TEXT, id="data-url"),
            pytest.param("DATA:;BASE64," + TEXT, id="data-url-capitals"),
            pytest.param(
                "data:image/svg+xml;charset=utf-8;base64," + TEXT, id="data-url-parameters"
            ),
            pytest.param(base64.encodebytes(BYTES).decode(), id="mime-lines"),
            pytest.param(TEXT[:77] + "\r\n\t " + TEXT[77:], id="inner-whitespace"),
            pytest.param(f"\n {TEXT}\n", id="outer-whitespace"),
            pytest.param(f" data:image/png;base64,\n{TEXT}", id="data-url-and-whitespace"),
        ],
    )
    def test_tolerated(self, text: str) -> None:
        assert decode_base64(text) == self.BYTES

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            pytest.param("", "empty", id="empty"),
            pytest.param(" \n", "empty", id="only-whitespace"),
            pytest.param("data:image/png;base64,", "empty", id="data-url-of-nothing"),
            pytest.param("data:image/png," + TEXT, ";base64", id="data-url-not-base64"),
            pytest.param("data:" + TEXT, ";base64", id="data-url-without-comma"),
            pytest.param("AAA", "not base64", id="padding-missing"),
            pytest.param("AA==A", "not base64", id="padding-inside"),
            pytest.param("AAAA=", "not base64", id="padding-surplus"),
            pytest.param("A===", "not base64", id="padding-only"),
            pytest.param("=", "not base64", id="nothing-but-padding"),
            pytest.param("AA-_", "not base64", id="url-alphabet"),
            pytest.param("AA!A", "not base64", id="punctuation"),
            pytest.param("AAA\0", "not base64", id="nul"),
            pytest.param("AAAÄ", "not base64", id="not-ascii"),
            pytest.param("AAAA\u00a0", "not base64", id="whitespace-not-ascii"),
            pytest.param("\u00a0AAAA", "not base64", id="leading-whitespace-not-ascii"),
            pytest.param("AAAA\ud800", "not base64", id="lone-surrogate"),
            pytest.param("https://example.org/a.png", "not base64", id="an-address"),
        ],
    )
    def test_refused(self, text: str, message: str) -> None:
        with pytest.raises(InvalidField, match=message) as caught:
            decode_base64(text, "b64mask")
        assert caught.value.field == "b64mask"

    @settings(max_examples=100, derandomize=True, deadline=None, database=None)
    @given(st.binary(min_size=1, max_size=300))
    def test_what_python_encodes_comes_back(self, data: bytes) -> None:
        assert decode_base64(base64.b64encode(data).decode()) == data
        assert decode_base64(base64.encodebytes(data).decode()) == data

    @settings(max_examples=200, derandomize=True, deadline=None, database=None)
    @given(st.text(alphabet="dat:;,bse64Az09+/=-_ \n\0Ä", max_size=40))
    def test_any_text_gives_bytes_or_our_error(self, text: str) -> None:
        try:
            decoded = decode_base64(text)
        except InvalidField:
            return
        assert decoded
