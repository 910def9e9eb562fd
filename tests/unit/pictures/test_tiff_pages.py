"""The directories and pages of a TIFF are found, and their bounds are checked."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
import tifffile

from samserve.errors import InvalidField, InvalidImage, TooLarge
from samserve.pictures.decoding import decode_image, decode_page
from tests.support.picture_files import RGB, RGB16_TAGS, RGB_TAGS, grey3, tiff
from tests.support.scientific_tiffs import (
    COLOUR,
    FLOAT,
    LIMIT,
    WIDE,
    H,
    W,
    check,
    scaled,
    stretched,
    written,
)


class TestForms:
    @pytest.mark.parametrize("order", ["<", ">"])
    @pytest.mark.parametrize("big", [False, True])
    def test_either_byte_order_classic_or_big(self, order: str, big: bool) -> None:
        how = {"bigtiff": big, "byteorder": order}
        check(written(COLOUR, photometric="rgb", rowsperstrip=9, **how), COLOUR)
        check(written(WIDE, compression="zlib", predictor=True, **how), grey3(stretched(WIDE)))
        floats = written(FLOAT, compression="zlib", predictor=3, **how)
        check(floats, grey3(stretched(FLOAT)))

    @pytest.mark.parametrize("big", [False, True])
    def test_cut_before_the_directory(self, big: bool) -> None:
        data = written(COLOUR, photometric="rgb", bigtiff=big)
        with tifffile.TiffFile(BytesIO(data)) as file:
            at = file.pages[0].offset
        # tifffile writes the directory before the pixels, other programs behind them.
        for cut in (data[:at], data[: at + 1], data[:8], data[: at + 30]):
            with pytest.raises(InvalidImage, match=r"truncated: it ends (before|within)") as caught:
                decode_image(cut, LIMIT)
            assert "samples" not in str(caught.value)

    def test_cut_in_the_pixels_is_called_truncated(self) -> None:
        with pytest.raises(InvalidImage, match="truncated"):
            decode_image(written(COLOUR, photometric="rgb")[:-1], LIMIT)

    def test_profiles_and_private_tags_cost_nothing(self) -> None:
        much = bytes(3_000_000)
        tags = [(34675, 7, len(much), much, True), (700, 1, len(much), much, True)]
        tags += [(65000, 7, len(much), much, True), (37724, 7, len(much), much, True)]
        check(written(COLOUR, photometric="rgb", extratags=tags), COLOUR)

    def test_tags_that_lie_are_passed_over(self) -> None:
        lying = bytearray(tiff([RGB.tobytes()], RGB_TAGS | {65000: 0}))
        at = lying.index(struct.pack("<HHI", 65000, 4, 1))
        lying[at : at + 12] = struct.pack("<HHII", 34675, 7, 2**31, 2**31)
        np.testing.assert_array_equal(decode_image(bytes(lying), LIMIT), RGB)

    def test_memory_is_bounded_by_the_limit(self) -> None:
        data = tiff([bytes(8)], {258: (64,) * 3, 262: 2, 277: 3, 339: (3,) * 3}, size=(1000, 1000))
        with pytest.raises(InvalidImage, match="24000000 bytes; the limit is 12000000"):
            decode_image(data, LIMIT)

    def test_thin_pictures_in_wide_tiles(self) -> None:
        tags = RGB_TAGS | {322: 16, 323: 60_000}
        data = tiff([b"x"] * 625, tags, size=(10_000, 16), offsets_tag=324)
        with pytest.raises(InvalidImage, match="600000000 pixels together"):
            decode_image(data, LIMIT)

    def test_strips_without_end(self) -> None:
        data = tiff([b"x"], {278: 1}, size=(1, 900_000))
        with pytest.raises(InvalidImage, match="900000 strips or tiles"):
            decode_image(data, LIMIT)


class TestPages:
    PAGES = (COLOUR, COLOUR[::-1].copy(), 255 - COLOUR)

    def pages(self, **how: Any) -> bytes:
        stream = BytesIO()
        with tifffile.TiffWriter(stream, **how) as writer:
            for page in self.PAGES:
                writer.write(page, photometric="rgb", contiguous=False)
        return stream.getvalue()

    @pytest.mark.parametrize("page", range(3))
    @pytest.mark.parametrize(
        "how", [{}, {"bigtiff": True}, {"byteorder": ">"}, {"ome": True}], ids=repr
    )
    def test_each_can_be_chosen(self, how: dict[str, Any], page: int) -> None:
        decoded = decode_page(self.pages(**how), LIMIT, "b64img", page)
        assert decoded.pages == 3
        np.testing.assert_array_equal(decoded.pixels, self.PAGES[page])

    def test_pages_of_other_sizes_and_kinds(self) -> None:
        stream = BytesIO()
        with tifffile.TiffWriter(stream) as writer:
            writer.write(COLOUR, photometric="rgb")
            writer.write(WIDE[:20], photometric="minisblack", compression="zlib")
        decoded = decode_page(stream.getvalue(), LIMIT, "b64img", 1)
        np.testing.assert_array_equal(decoded.pixels, grey3(stretched(WIDE[:20])))

    @pytest.mark.parametrize("page", [3, 4, 2**31 - 1])
    def test_one_that_is_not_there(self, page: int) -> None:
        with pytest.raises(InvalidField, match="has 3 pages") as caught:
            decode_image(self.pages(), LIMIT, page=page)
        assert caught.value.field == "page"

    def test_each_is_held_to_the_limit(self) -> None:
        stream = BytesIO()
        with tifffile.TiffWriter(stream) as writer:
            writer.write(COLOUR, photometric="rgb")
            writer.write(np.zeros((100, 100), np.uint8), photometric="minisblack")
        decode_image(stream.getvalue(), H * W)
        with pytest.raises(TooLarge):
            decode_image(stream.getvalue(), H * W, page=1)

    STACK = np.stack([WIDE, WIDE * 2, WIDE[::-1], WIDE // 3]).reshape(2, 2, H, W)

    def imagej(self) -> bytes:
        """Return a stack with one directory for all planes, as ImageJ writes it."""
        description = b"ImageJ=1.54f\nimages=4\nchannels=2\nslices=2\nhyperstack=true\n\0"
        planes = self.STACK.astype(">u2").tobytes()
        tags: dict[int, Any] = {258: 16, 270: description}
        data = tiff([planes], tags, size=(W, H), order=">")
        # The strip covers the first plane only.
        return data.replace(
            struct.pack(">HHII", 279, 4, 1, len(planes)),
            struct.pack(">HHII", 279, 4, 1, len(planes) // 4),
        )

    def shaped(self) -> bytes:
        return written(self.STACK.reshape(4, H, W), truncate=True)

    def metamorph(self) -> bytes:
        planes = self.STACK.astype("<u2").tobytes()
        tags: dict[int, Any] = {258: 16, 33629: list(range(4 * 6))}
        data = tiff([planes], tags, size=(W, H))
        # Rationals: 6 integers per plane.
        return data.replace(struct.pack("<HHI", 33629, 4, 24), struct.pack("<HHI", 33629, 5, 4))

    @pytest.mark.parametrize("kind", ["imagej", "shaped", "metamorph"])
    def test_stacks_of_one_directory(self, kind: str) -> None:
        data = getattr(self, kind)()
        for page, plane in enumerate(self.STACK.reshape(4, H, W)):
            decoded = decode_page(data, LIMIT, "b64img", page)
            assert decoded.pages == 4
            np.testing.assert_array_equal(decoded.pixels, grey3(stretched(plane)))
        with pytest.raises(InvalidField, match="has 4 pages"):
            decode_image(data, LIMIT, page=4)

    def test_a_stack_that_is_cut_has_the_planes_that_are_there(self) -> None:
        assert decode_page(self.imagej()[: -2 * H * W - 5], LIMIT, "b64img", 0).pages == 2

    @pytest.mark.parametrize("said", [b"images=900000000", b"images=0", b"images=-4", b"images=x"])
    def test_a_stack_that_lies(self, said: bytes) -> None:
        data = self.imagej().replace(b"images=4", said[:8].ljust(8))
        assert decode_page(data, LIMIT, "b64img", 0).pages in (1, 4)

    def test_a_chain_that_bites_its_tail(self) -> None:
        data = bytearray(self.pages())
        with tifffile.TiffFile(BytesIO(bytes(data))) as file:
            first, last = file.pages[0].offset, file.pages[2].offset
        (count,) = struct.unpack_from("<H", data, last)
        struct.pack_into("<I", data, last + 2 + 12 * count, first)
        assert decode_page(bytes(data), LIMIT, "b64img", 2).pages == 3

    def test_a_chain_without_end(self) -> None:
        link = b"".join(
            struct.pack("<HHHIII", 1, 256, 4, 1, 9, 8 + 18 * (index + 1))
            for index in range(200_000)
        )
        with pytest.raises(InvalidImage, match="more than 100000 pages"):
            decode_image(b"II*\0\x08\0\0\0" + link, LIMIT)

    def test_16_bit_planes_of_colour(self) -> None:
        planes = [
            np.ascontiguousarray((COLOUR.astype(np.uint16) * 9)[..., band]) for band in range(3)
        ]
        data = tiff([plane.tobytes() for plane in planes], RGB16_TAGS | {284: 2}, size=(W, H))
        check(data, scaled(COLOUR.astype(np.uint16) * 9))
