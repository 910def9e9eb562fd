"""Files that are too large, incomplete, damaged or of another kind are refused.

Headers that declare a wrong size are composed byte by byte.
"""

from __future__ import annotations

import random
import struct
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from samserve.errors import InvalidImage, SamserveError, TooLarge
from samserve.pictures.decoding import decode_image
from tests.support.picture_files import (
    BITMAP,
    GREY,
    HEIGHT,
    LIMIT,
    RGB,
    RGB_TAGS,
    RGBA,
    SMOOTH,
    WIDE,
    WIDTH,
    chunk,
    paletted,
    png,
    save,
    tiff,
)


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
        """Fail if a picture is allocated, which every decoder of Pillow does first."""

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
        with pytest.raises(InvalidImage, match="tiles have 2116000000 pixels"):
            decode_image(tiff([b"x"], tags, offsets_tag=324), LIMIT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP"])
def test_as_many_pixels_as_the_limit_are_decoded(kind: str) -> None:
    assert decode_image(save(RGB, kind), HEIGHT * WIDTH).shape == (HEIGHT, WIDTH, 3)


def test_pillows_own_limit_does_not_interfere() -> None:
    # more than 179 million pixels, which Pillow refuses by default
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
        "only without subsampling",
    ),
    "missing-strips": (
        tiff([RGB[0].tobytes()], RGB_TAGS | {278: 1}),
        "number of strips or tiles does not fit",
    ),
    "surplus-strips": (
        tiff([GREY.tobytes()] * 9, {278: HEIGHT - 1}),
        "number of strips or tiles does not fit",
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
    # at every byte of small files; at every few bytes of large files, and at the last bytes
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
    """Return `data` with bytes changed, removed, doubled, or set to extreme numbers."""
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
    """Return a PNG with correct checksums, so that a mutation reaches the decoder."""
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


@pytest.mark.parametrize("long", [1_000_001, 100_000_000])
def test_a_side_that_is_too_long_is_refused_by_the_header(long: int) -> None:
    """Decoding a PNG of 200 kB took 2.4 GB: Pillow keeps memory for each row."""
    for size in ((1, long), (long, 1)):
        bitmap = struct.pack("<IIiiHH24x", 54, 40, *size, 1, 24)
        headers = [png(*size, 8, 0), b"BM" + bytes(8) + bitmap, tiff([b""], RGB_TAGS, size=size)]
        for header in headers:
            with pytest.raises(TooLarge, match="1000000 pixels along a side"):
                decode_image(header, 10**8)
