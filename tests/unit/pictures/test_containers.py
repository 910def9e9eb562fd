"""Metadata in PNG, JPEG and WebP is removed, whatever it is, and changes no pixel."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from samserve.errors import InvalidField, InvalidImage, TooLarge
from samserve.pictures.containers import jpeg_frame, jpeg_pixels, png_pixels
from samserve.pictures.decoding import decode_image, decode_page
from tests.support.picture_files import (
    COLOUR16,
    HEIGHT,
    PALETTE,
    RGB,
    SMOOTH,
    WIDTH,
    chunk,
    grey3,
    png,
    save,
    scaled,
)
from tests.support.scientific_tiffs import WIDE, stretched

LIMIT = 1_000_000
MUCH = bytes(1_048_577)
BOMB = zlib.compress(bytes(2**28), 9)  # 256 MB in 256 kB


def with_chunks(data: bytes, chunks: Iterable[bytes], behind: bytes = b"IHDR") -> bytes:
    """Return a PNG with these chunks behind its first chunk named `behind`."""
    at = data.index(behind) - 4
    (length,) = struct.unpack_from(">I", data, at)
    at += 12 + length
    return data[:at] + b"".join(chunks) + data[at:]


ANCILLARY = {
    "a large profile": [chunk(b"iCCP", b"p\0\0" + zlib.compress(MUCH))],
    "a large incompressible profile": [
        chunk(b"iCCP", b"p\0\0" + np.random.default_rng(0).bytes(2_000_000))
    ],
    "a bomb of a profile": [chunk(b"iCCP", b"p\0\0" + BOMB)],
    "a bomb of a text": [chunk(b"zTXt", b"Comment\0\0" + BOMB)],
    "a bomb of an international text": [chunk(b"iTXt", b"XML\0\1\0\0\0" + BOMB)],
    "a large text": [chunk(b"tEXt", b"Comment\0" + MUCH)],
    "many texts": [chunk(b"zTXt", b"Comment\0\0" + zlib.compress(MUCH))] * 200,
    "large Exif": [chunk(b"eXIf", MUCH)],
    "a private chunk": [chunk(b"prVt", MUCH)],
    "broken ones": [chunk(b"gAMA", b""), chunk(b"tRNS", b"12345"), chunk(b"iCCP", b"nonsense")],
    "a wrong checksum": [struct.pack(">I", 4) + b"tEXt" + b"a\0bc" + b"\0\0\0\0"],
    "a gamma": [chunk(b"gAMA", struct.pack(">I", 10_000)), chunk(b"sRGB", b"\0")],
}


@pytest.mark.parametrize("chunks", ANCILLARY.values(), ids=ANCILLARY.keys())
@pytest.mark.parametrize("behind", [b"IHDR", b"IDAT"])
def test_what_a_png_carries_beside_its_pixels(chunks: list[bytes], behind: bytes) -> None:
    pictures: list[tuple[bytes, Any]] = [
        (save(RGB, "PNG"), RGB),
        (save(Image.fromarray(RGB).quantize(5), "PNG"), None),
        (png(WIDTH, HEIGHT, 16, 2, [row.astype(">u2").tobytes() for row in COLOUR16[..., :3]]),
         scaled(COLOUR16[..., :3])),
    ]  # fmt: skip
    for plain, pixels in pictures:
        expected = decode_image(plain, LIMIT) if pixels is None else pixels
        with_them = with_chunks(plain, chunks, behind)
        np.testing.assert_array_equal(decode_image(with_them, LIMIT), expected)
        assert png_pixels(with_them).data == png_pixels(plain).data


def test_a_profile_as_pillow_writes_it() -> None:
    np.testing.assert_array_equal(decode_image(save(RGB, "PNG", icc_profile=MUCH), LIMIT), RGB)
    info = PngImagePlugin.PngInfo()
    info.add_text("Description", "x" * 2_000_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "y" * 2_000_000)
    np.testing.assert_array_equal(decode_image(save(RGB, "PNG", pnginfo=info), LIMIT), RGB)


def test_a_palette_stays() -> None:
    image = Image.fromarray(np.arange(6, dtype=np.uint8).reshape(2, 3))
    image.putpalette(PALETTE.tobytes())
    data = with_chunks(save(image, "PNG", transparency=b"\0\1"), ANCILLARY["a bomb of a profile"])
    np.testing.assert_array_equal(decode_image(data, LIMIT), PALETTE[np.arange(6).reshape(2, 3)])


@pytest.mark.parametrize("length", [2**31 - 1, 2**32 - 1, 10_000_000])
def test_a_length_that_lies_is_called_truncated(length: int) -> None:
    data = save(RGB, "PNG")
    lying = with_chunks(data, [struct.pack(">I", length) + b"tEXt" + b"abcdefgh"])
    with pytest.raises(InvalidImage, match="truncated"):
        decode_image(lying, LIMIT)
    # A chunk behind the pixels is not needed.
    behind = with_chunks(data, [struct.pack(">I", length) + b"tEXt" + b"abcdefgh"], b"IDAT")
    np.testing.assert_array_equal(decode_image(behind, LIMIT), RGB)


def test_apples_variant_is_refused_by_name() -> None:
    data = save(RGB, "PNG")
    with pytest.raises(InvalidImage, match="CgBI"):
        decode_image(data[:8] + chunk(b"CgBI", b"\x50\0\x20\x02") + data[8:], LIMIT)


class TestPng16:
    @pytest.mark.parametrize("most", [255, 4095, 65535])
    def test_grey_with_alpha(self, most: int) -> None:
        grey = (COLOUR16[..., 0].astype(np.uint32) * most // 65535).astype(np.uint16)
        grey[0, 0] = most
        both = np.dstack([grey, np.full_like(grey, 65535)]).astype(">u2")
        data = png(WIDTH, HEIGHT, 16, 4, [row.tobytes() for row in both])
        np.testing.assert_array_equal(decode_image(data, LIMIT), grey3(scaled(grey)))

    @pytest.mark.parametrize("most", [255, 4095, 65535])
    @pytest.mark.parametrize("count", [3, 4])
    def test_colour(self, most: int, count: int) -> None:
        colour = (COLOUR16.astype(np.uint32) * most // 65535).astype(np.uint16)
        colour[..., 3] = 65535
        rows = [row.astype(">u2").tobytes() for row in colour[..., :count]]
        data = png(WIDTH, HEIGHT, 16, 2 if count == 3 else 6, rows)
        np.testing.assert_array_equal(decode_image(data, LIMIT), scaled(colour[..., :3]))

    def test_all_zero_is_black(self) -> None:
        data = png(2, 1, 16, 6, [bytes(6) + b"\xff\xff" + bytes(8)])
        assert not decode_image(data, LIMIT).any()

    def test_interlaced(self) -> None:
        colour = COLOUR16[..., :3]
        passes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4)]
        passes += [(1, 0, 2, 2), (0, 1, 1, 2)]
        rows = [
            b"\0" + row.astype(">u2").tobytes()
            for x, y, across, down in passes
            if x < WIDTH and y < HEIGHT
            for row in colour[y::down, x::across]
        ]
        header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 1)
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
        data += chunk(b"IDAT", zlib.compress(b"".join(rows))) + chunk(b"IEND", b"")
        np.testing.assert_array_equal(decode_image(data, LIMIT), scaled(colour))

    @pytest.mark.parametrize("colour_type", [2, 4, 6])
    def test_cut(self, colour_type: int) -> None:
        count = {2: 3, 4: 2, 6: 4}[colour_type]
        rows = [row.astype(">u2").tobytes() for row in COLOUR16[..., :count]]
        data = png(WIDTH, HEIGHT, 16, colour_type, rows)
        whole = decode_image(data, LIMIT)
        refused = 0
        for cut in range(8, len(data)):
            try:
                np.testing.assert_array_equal(decode_image(data[:cut], LIMIT), whole)
            except InvalidImage:
                refused += 1
        assert refused > len(data) - 8 - 30  # the last bytes are checksums only


def app(number: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, 0xE0 + number, len(body) + 2) + body


JPEG_SEGMENTS = {
    "a profile of 2 MB": [
        app(2, b"ICC_PROFILE\0" + bytes([n + 1, 32]) + bytes(65_000)) for n in range(32)
    ],
    "comments": [b"\xff\xfe" + struct.pack(">H", 65_000) + bytes(64_998)] * 30,
    "Exif that is none": [app(1, b"Exif\0\0" + b"\xff" * 65_000)] * 20,
    "broken Photoshop": [app(13, b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\xff\xff\xff")],
    "XMP": [app(1, b"http://ns.adobe.com/xap/1.0/\0" + b"x" * 60_000)] * 40,
    "fill bytes": [b"\xff\xff\xff" + app(3, b"abc")],
}


@pytest.mark.parametrize("segments", JPEG_SEGMENTS.values(), ids=JPEG_SEGMENTS.keys())
@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_what_a_jpeg_carries_beside_its_pixels(segments: list[bytes], mode: str) -> None:
    plain = save(SMOOTH, "JPEG", mode)
    # Behind the first segment, which declares the colour space.
    (length,) = struct.unpack_from(">H", plain, 4)
    at = 4 + length
    data = plain[:at] + b"".join(segments) + plain[at:]
    np.testing.assert_array_equal(decode_image(data, LIMIT), decode_image(plain, LIMIT))
    assert len(jpeg_pixels(data)) <= len(plain) + 10


def test_what_a_webp_carries_beside_its_pixels() -> None:
    how: dict[str, Any] = {"lossless": True, "icc_profile": MUCH, "xmp": MUCH, "exif": MUCH}
    np.testing.assert_array_equal(decode_image(save(RGB, "WEBP", **how), LIMIT), RGB)


class TestJpegOf12Bits:
    def of(self, values: np.ndarray[Any, Any]) -> bytes:
        import imagecodecs

        return bytes(imagecodecs.jpeg_encode(values, level=98, bitspersample=12))

    def test_grey_is_stretched(self) -> None:
        values = WIDE // 2
        difference = decode_image(self.of(values), LIMIT).astype(int) - grey3(stretched(values))
        assert np.abs(difference).max() < 4

    def test_colour_is_scaled(self) -> None:
        values = np.dstack([WIDE // 4, WIDE // 3, WIDE // 5]).astype(np.uint16)
        difference = decode_image(self.of(values), LIMIT).astype(int) - scaled(values)
        assert np.abs(difference).mean() < 3

    def test_cut(self) -> None:
        data = self.of(WIDE // 2)
        for cut in range(2, len(data), 7):
            with pytest.raises(InvalidImage):
                decode_image(data[:cut], LIMIT)

    def test_it_is_held_to_the_limit(self) -> None:
        frame = jpeg_frame(self.of(WIDE // 2))
        assert frame is not None
        assert frame.bits == 12
        with pytest.raises(TooLarge):
            decode_image(self.of(WIDE // 2), 100)


class TestFrames:
    """Formats other than TIFF have page 0 only, but their number of frames is counted."""

    MORE = (Image.fromarray(255 - RGB), Image.fromarray(RGB // 2))

    @pytest.mark.parametrize(("kind", "how"), [("PNG", {}), ("WEBP", {"lossless": True})])
    def test_animations(self, kind: str, how: dict[str, Any]) -> None:
        data = save(RGB, kind, save_all=True, append_images=self.MORE, **how)
        decoded = decode_page(data, LIMIT, "b64img", 0)
        assert decoded.pages == 3
        np.testing.assert_array_equal(decoded.pixels, RGB)
        with pytest.raises(
            InvalidField, match=f"only a TIFF has pages.*3 frames.*{kind}"
        ) as caught:
            decode_image(data, LIMIT, page=1)
        assert caught.value.field == "page"
        with pytest.raises(InvalidField, match="has 3 pages"):
            decode_image(data, LIMIT, page=3)

    def test_a_still_before_the_animation_is_one_more(self) -> None:
        stream = BytesIO()
        still = Image.fromarray(RGB)
        still.save(stream, "PNG", save_all=True, append_images=self.MORE, default_image=True)
        assert decode_page(stream.getvalue(), LIMIT, "b64img", 0).pages == 3

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
    def test_stills_have_one(self, kind: str) -> None:
        data = save(RGB, kind)
        assert decode_page(data, LIMIT, "b64img", 0).pages == 1
        with pytest.raises(InvalidField, match="has 1 page"):
            decode_image(data, LIMIT, page=1)


@pytest.mark.parametrize("count", [1, 2, 3, 1000, 40_000_000])
@pytest.mark.parametrize("before", [b"\xff\xe0", b"\xff\xdb", b"\xff\xc0", b"\xff\xda"])
def test_the_fill_bytes_of_a_jpeg_cost_nothing(before: bytes, count: int) -> None:
    """Any number of them may stand before a marker. One by one, these would take half a minute."""
    stream = BytesIO()
    Image.fromarray(np.arange(64 * 64 * 3, dtype=np.uint8).reshape(64, 64, 3)).save(stream, "JPEG")
    jpeg = stream.getvalue()
    at = jpeg.index(before)
    filled = jpeg[:at] + b"\xff" * count + jpeg[at:]
    assert len(jpeg_pixels(filled)) <= len(jpeg)
    assert jpeg_frame(filled) == jpeg_frame(jpeg)
    np.testing.assert_array_equal(decode_image(filled, 10**6), decode_image(jpeg, 10**6))
