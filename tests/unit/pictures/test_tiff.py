"""TIFFs as science writes them, against pixels worked out from the arrays they were made of.

`tifffile` writes them; what it does not write is put together by `tiff` of test_images.
"""

from __future__ import annotations

import contextlib
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from samserve.errors import InvalidField, InvalidImage, TooLarge
from samserve.pictures.picture import decode_image, decode_page
from samserve.pictures.tiff_segments import COMPRESSIONS, REFUSED
from tests.unit.pictures.test_picture import (
    HEIGHT,
    RGB,
    RGB16_TAGS,
    RGB_TAGS,
    WIDTH,
    grey3,
    save,
    tiff,
)

LIMIT = 1_000_000
H, W = 50, 60
_Y, _X = np.mgrid[:H, :W]
COLOUR = np.dstack([_X * 4, _Y * 5, (_X + _Y) * 2]).astype(np.uint8)
WIDE = (_X * 60 + _Y * 7 + 100).astype(np.uint16)
FLOAT = (WIDE / 7 - 40).astype(np.float32)


def written(pixels: NDArray[Any], **how: Any) -> bytes:
    """What tifffile writes; grey unless `photometric` says otherwise."""
    stream = BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", **how})
    return stream.getvalue()


def tag_of(data: bytes, number: int) -> tifffile.TiffTag:
    """A tag of the first page."""
    with tifffile.TiffFile(BytesIO(data)) as file:
        return file.pages.first.tags[number]


def stretched(values: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
    """Each pixel of a grey picture by itself, in Python's own numbers."""
    known = np.isfinite(values) if valid is None else valid & np.isfinite(values)
    low, high = float(values[known].min()), float(values[known].max())
    rows = [
        [
            round((float(v) - low) * 255 / (high - low)) if ok else 0
            for v, ok in zip(*row, strict=True)
        ]
        for row in zip(values, known, strict=True)
    ]
    return np.array(rows, np.uint8)


def scaled(colour: NDArray[Any], most: float | None = None) -> NDArray[np.uint8]:
    most = float(colour.max()) if most is None else most
    return np.array(
        [
            [[round(max(float(v), 0) * 255 / most) for v in pixel] for pixel in row]
            for row in colour
        ],
        np.uint8,
    )


def check(data: bytes, expected: NDArray[np.uint8], within: int = 0) -> None:
    difference = np.abs(decode_image(data, LIMIT).astype(int) - expected)
    assert difference.max() <= within


CUTS: list[dict[str, Any]] = [{"rowsperstrip": 7}, {"tile": (16, 32)}]


class TestCompressions:
    """What comes out of each is what went in."""

    @pytest.mark.parametrize("cut", CUTS, ids=["strips", "tiles"])
    @pytest.mark.parametrize(
        ("compression", "predictor"),
        [
            (None, False),
            ("lzw", False),
            ("lzw", True),
            ("zlib", False),
            ("zlib", True),
            ("packbits", False),
            ("lzma", False),
            ("zstd", False),
            ("zstd", True),
            ("lerc", False),
        ],
    )
    def test_lossless(self, compression: str | None, predictor: bool, cut: dict[str, Any]) -> None:
        how = {"compression": compression, "predictor": predictor, **cut}
        check(written(COLOUR, photometric="rgb", **how), COLOUR)
        check(written(WIDE, **how), grey3(stretched(WIDE)))
        check(written(FLOAT, **how), grey3(stretched(FLOAT)))
        planes = np.ascontiguousarray(COLOUR.transpose(2, 0, 1))
        planar = {"photometric": "rgb", "planarconfig": "separate"}
        check(written(planes, **planar, **how), COLOUR)

    @pytest.mark.parametrize("cut", CUTS, ids=["strips", "tiles"])
    @pytest.mark.parametrize("around", ["deflate", "zstd"])
    def test_lerc_in_another(self, around: str, cut: dict[str, Any]) -> None:
        data = written(FLOAT, compression="lerc", compressionargs={"compression": around}, **cut)
        check(data, grey3(stretched(FLOAT)))

    def test_lercs_invalid_pixels_are_no_data(self) -> None:
        import imagecodecs

        valid = (_X + _Y) % 7 != 0
        blob = bytes(imagecodecs.lerc_encode(FLOAT, masks=valid))
        data = tiff([blob], {258: 32, 259: 34887, 339: 3}, size=(W, H))
        check(data, grey3(stretched(FLOAT, valid)))
        whole = bytes(imagecodecs.lerc_encode(WIDE, masks=valid))
        integers: dict[int, Any] = {258: 16, 259: 34887}
        with pytest.raises(InvalidImage, match="LERC with invalid pixels"):
            decode_image(tiff([whole], integers, size=(W, H)), LIMIT)
        check(
            tiff([whole], integers | {42113: b"9.000\0"}, size=(W, H)),
            grey3(stretched(WIDE, valid)),
        )

    @pytest.mark.parametrize("side", [16, 64])
    @pytest.mark.parametrize("subsampling", [0, 2])
    def test_jpeg(self, side: int, subsampling: int) -> None:
        """In tiles, each a stream of its own; in YCbCr, and in grey."""
        smooth = np.dstack([_X * 4, _Y * 4, _X + _Y]).astype(np.uint8)
        padded = np.pad(smooth, ((0, -H % side), (0, -W % side), (0, 0)), "edge")
        tiles = [
            padded[y : y + side, x : x + side] for y in range(0, H, side) for x in range(0, W, side)
        ]
        how: dict[str, Any] = {"quality": 98, "subsampling": subsampling}
        tags: dict[int, Any] = {259: 7, 322: side, 323: side}
        streams = [save(tile, "JPEG", **how) for tile in tiles]
        ycbcr = {258: (8, 8, 8), 262: 6, 277: 3}
        check(tiff(streams, tags | ycbcr, size=(W, H), offsets_tag=324), smooth, within=8)
        greys = [save(tile[..., 0], "JPEG", quality=98) for tile in tiles]
        check(tiff(greys, tags, size=(W, H), offsets_tag=324), grey3(smooth[..., 0]), within=4)

    def test_the_last_strip_of_jpeg_may_be_as_high_as_the_others(self) -> None:
        padded = np.pad(COLOUR[..., 0], ((0, 14), (0, 0)))
        streams = [save(padded[y : y + 32], "JPEG", quality=98) for y in (0, 32)]
        data = tiff(streams, {259: 7, 278: 32}, size=(W, H))
        check(data, grey3(COLOUR[..., 0]), within=12)

    def test_jpeg_of_another_size_is_refused(self) -> None:
        stream = save(np.zeros((900, 900), np.uint8), "JPEG")
        with pytest.raises(InvalidImage, match="damaged"):
            decode_image(tiff([stream], {259: 7}, size=(W, H)), LIMIT)

    def test_jpeg_of_12_bits(self) -> None:
        how = {"compression": "jpeg", "compressionargs": {"level": 98, "bitspersample": 12}}
        low = (WIDE // 2).astype(np.uint16)
        assert low.max() < 4096
        data = written(low, bitspersample=12, **how)
        check(data, grey3(stretched(low)), within=4)

    def test_a_jpeg_stream_without_an_end_is_refused(self) -> None:
        stream = save(COLOUR[..., 0], "JPEG")
        for cut in (stream[:-2], stream[: len(stream) // 2]):
            with pytest.raises(InvalidImage, match="damaged"):
                decode_image(tiff([cut], {259: 7}, size=(W, H)), LIMIT)

    def test_segments_that_lie_over_each_other_are_read_twice_at_most(self) -> None:
        """Each may be long, and give nothing."""
        strip = zlib.compress(bytes(W), 0) + bytes(50_000)
        data = tiff([strip], {259: 8, 278: 1}, size=(W, 1))
        check(data, np.zeros((1, W, 3), np.uint8))
        tags: dict[int, Any] = {259: 8, 278: 1}
        with pytest.raises(InvalidImage, match="lie over each other"):
            decode_image(tiff([strip] * H, tags, size=(W, H)).replace(strip, b"", H - 1), LIMIT)

    def test_webp(self) -> None:
        how = {"compression": "webp", "compressionargs": {"lossless": True}}
        check(written(COLOUR, photometric="rgb", rowsperstrip=20, **how), COLOUR)

    @pytest.mark.parametrize("number", [*REFUSED, 4242])
    def test_others_are_refused_by_name(self, number: int) -> None:
        with pytest.raises(InvalidImage) as caught:
            decode_image(tiff([bytes(35)], {259: number}), LIMIT)
        assert f"compressed by {REFUSED.get(number, 'an unknown method')} is not" in str(
            caught.value
        )
        assert "damaged" not in str(caught.value)

    @pytest.mark.parametrize("compression", ["lzw", "zlib", "zstd", "lzma", "packbits"])
    def test_what_comes_out_is_bounded_by_what_was_said(self, compression: str) -> None:
        """A thousand rows of data in a strip that says it has one."""
        rows = written(np.zeros((1000, 900), np.uint8), compression=compression, rowsperstrip=1000)
        data = bytearray(rows)
        at = tag_of(rows, 257).valueoffset
        data[at : at + 2] = struct.pack("<H", 1)
        with contextlib.suppress(InvalidImage):
            assert decode_image(bytes(data), LIMIT).shape == (1, 900, 3)


def test_the_table_of_compressions_is_whole() -> None:
    page = (Path(__file__).parents[3] / "docs" / "pictures.md").read_text()
    for name in {*COMPRESSIONS.values(), *REFUSED.values()}:
        # "NEF" for Nikon's, and so on.
        assert name.split()[-1].lower() in page.lower(), name


class TestColourOfManyBits:
    """One factor for all channels; zero stays zero."""

    @pytest.mark.parametrize("most", [255, 4095, 65535, 1])
    @pytest.mark.parametrize("order", ["<", ">"])
    def test_the_largest_value_becomes_255(self, most: int, order: str) -> None:
        colour = (COLOUR.astype(np.uint32) * most // 255).astype(np.uint16)
        colour[0, 0] = (most, 0, most // 2)
        data = written(colour, photometric="rgb", byteorder=order)
        check(data, scaled(colour))

    def test_a_full_range_is_within_one_level_of_the_high_byte(self) -> None:
        colour = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        colour = np.dstack([colour, colour[::-1], colour[:, ::-1]])
        check(written(colour, photometric="rgb"), (colour >> 8).astype(np.uint8), within=1)

    def test_all_zero_is_black(self) -> None:
        assert not decode_image(
            written(np.zeros((9, 9, 3), np.uint16), photometric="rgb"), LIMIT
        ).any()

    def test_alpha_does_not_count(self) -> None:
        colour = COLOUR.astype(np.uint16) * 3
        alpha = np.full((H, W), 65535, np.uint16)
        data = written(np.dstack([colour, alpha]), photometric="rgb", extrasamples=["unassalpha"])
        check(data, scaled(colour))
        grey = written(np.dstack([WIDE, alpha]), planarconfig="contig", extrasamples=["unassalpha"])
        check(grey, grey3(scaled(WIDE[..., np.newaxis])[..., 0]))

    def test_multiplied_by_alpha(self) -> None:
        stored = np.array([[[1000, 500, 0, 32768], [4000, 9, 8, 65535]]], np.uint16)
        data = written(stored, photometric="rgb", extrasamples=["assocalpha"])
        undone = np.array([[[1999, 999, 0], [4000, 9, 8]]])
        check(data, scaled(undone))

    def test_12_bits_packed(self) -> None:
        values = [0x000, 0x400, 0x800, 0x123, 0x456, 0x789]
        bits = "".join(f"{value:012b}" for value in values)
        row = int(bits, 2).to_bytes(len(bits) // 8, "big")
        data = tiff([row], {258: (12, 12, 12), 262: 2, 277: 3}, size=(2, 1))
        check(data, scaled(np.array(values).reshape(1, 2, 3)))

    @pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
    def test_floats(self, kind: type) -> None:
        colour: NDArray[Any] = (COLOUR / 255 * 0.7).astype(kind)
        colour[3, 4] = (np.nan, np.inf, -0.25)
        data = written(colour, photometric="rgb")
        finite = np.where(np.isfinite(colour), colour, 0)
        check(data, scaled(finite, float(np.nanmax(np.where(np.isinf(colour), 0, colour)))))

    @pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
    def test_signed_integers(self, kind: type) -> None:
        colour: NDArray[Any] = (COLOUR.astype(np.int64) // 2 - 20).astype(kind)
        check(written(colour, photometric="rgb"), scaled(colour))

    def test_nothing_above_zero_is_refused(self) -> None:
        colour = np.full((4, 4, 3), -5, np.int16)
        with pytest.raises(InvalidImage, match="all zero or negative"):
            decode_image(written(colour, photometric="rgb"), LIMIT)

    @pytest.mark.parametrize("kind", [np.uint32, np.uint64])
    def test_wider_integers(self, kind: type) -> None:
        colour: NDArray[Any] = COLOUR.astype(kind) * 70_000
        check(written(colour, photometric="rgb"), scaled(colour))

    def test_inks_have_a_fixed_range(self) -> None:
        inks = np.zeros((4, 4, 4), np.uint16)
        inks[0, 0] = (65535, 0, 0, 0)
        pixels = decode_image(written(inks, photometric="separated"), LIMIT)
        assert pixels[0, 0].tolist() == [0, 255, 255]
        assert pixels[1, 1].tolist() == [255, 255, 255]


class TestNoData:
    @pytest.mark.parametrize(
        ("kind", "text", "value"),
        [
            (np.float32, "-9999", -9999),
            (np.float32, " -3.4e38", -3.4e38),
            (np.float32, "-3.4028234663852886e+38", np.finfo(np.float32).min),
            (np.float32, "0.1", 0.1),
            (np.float64, "1e300", 1e300),
            (np.int16, "-32768", -32768),
            (np.uint16, "65535", 65535),
            (np.uint16, "65535.0", 65535),
            (np.uint16, "0", 0),
            (np.uint32, "4294967295", 4294967295),
            (np.int64, "-9223372036854775808", -(2**63)),
        ],
    )
    def test_it_is_left_out_of_the_range(self, kind: type, text: str, value: float) -> None:
        values = WIDE.astype(kind)
        valid = (_X * _Y) % 5 != 1
        values[~valid] = value
        data = written(values, extratags=[(42113, 2, 0, text, True)])
        check(data, grey3(stretched(values, valid)))

    @pytest.mark.parametrize("text", ["nan", "-9999", "70000", "0.5", "1e999", "none", ""])
    def test_what_no_sample_can_be_is_ignored(self, text: str) -> None:
        data = written(WIDE, extratags=[(42113, 2, 0, text, True)])
        check(data, grey3(stretched(WIDE)))

    def test_in_colour(self) -> None:
        colour = COLOUR.astype(np.uint16) * 2
        colour[5:9, 5:9] = 65535
        data = written(colour, photometric="rgb", extratags=[(42113, 2, 0, "65535", True)])
        colour[5:9, 5:9] = 0
        check(data, scaled(colour))

    def test_where_white_is_zero(self) -> None:
        values = WIDE.copy()
        values[2:4] = 60000
        valid = values != 60000
        data = written(values, photometric="miniswhite", extratags=[(42113, 2, 0, "60000", True)])
        check(data, grey3(stretched(-values.astype(np.int64), valid)))

    def test_in_8_bits_there_is_no_range(self) -> None:
        grey = COLOUR[..., 0]
        check(written(grey, extratags=[(42113, 2, 0, "236", True)]), grey3(grey))

    def test_a_tile_that_is_left_out_holds_none(self) -> None:
        """As GDAL writes sparse files."""
        values = WIDE.copy()
        data = bytearray(written(values, tile=(16, 16), extratags=[(42113, 2, 0, "65535", True)]))
        for number in (324, 325):
            tag = tag_of(bytes(data), number)
            size = 2 if tag.dtype == 3 else 4
            start = tag.valueoffset + size * 5  # the sixth
            data[start : start + size] = bytes(size)
        valid = np.ones((H, W), np.bool_)
        valid[16:32, 16:32] = False
        check(bytes(data), grey3(stretched(values, valid)))


class TestChannels:
    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_two_are_red_and_green(self, planar: str) -> None:
        channels = np.dstack([WIDE, (_Y * 900).astype(np.uint16)])
        stored = channels if planar == "contig" else channels.transpose(2, 0, 1)
        data = written(np.ascontiguousarray(stored), planarconfig=planar)
        expected = [stretched(channels[..., 0]), stretched(channels[..., 1]), np.zeros_like(_X)]
        check(data, np.dstack(expected).astype(np.uint8))

    def test_two_of_8_bits_are_as_they_are_stored(self) -> None:
        data = written(COLOUR[..., :2], planarconfig="contig")
        check(data, np.dstack([COLOUR[..., 0], COLOUR[..., 1], np.zeros((H, W), np.uint8)]))

    def test_three_are_red_green_and_blue(self) -> None:
        channels = np.dstack([WIDE, (_Y * 900).astype(np.uint16), (_X * 3).astype(np.uint16)])
        data = written(channels, planarconfig="contig")
        check(data, np.dstack([stretched(channels[..., index]) for index in range(3)]))

    @pytest.mark.parametrize("count", [4, 5, 9])
    @pytest.mark.parametrize("planar", ["contig", "separate"])
    def test_more_are_refused(self, count: int, planar: str) -> None:
        shape = (H, W, count) if planar == "contig" else (count, H, W)
        data = written(np.zeros(shape, np.uint16), planarconfig=planar)
        with pytest.raises(InvalidImage, match=f"{count} channels that are neither RGB nor CMYK"):
            decode_image(data, LIMIT)

    def test_extra_samples_of_rgb_are_left_out(self) -> None:
        more = np.dstack([COLOUR, COLOUR[..., :2]])
        check(written(more, photometric="rgb", planarconfig="contig"), COLOUR)

    @pytest.mark.parametrize(
        ("tags", "name"),
        [
            ({262: 32803}, "colour filter array"),
            ({262: 34892}, "linear raw"),
            ({262: 9}, "ICC Lab"),
            ({258: 64, 339: 5}, "complex numbers of 64 bits"),
            ({258: 24}, "unsigned integers of 24 bits"),
            ({258: 24, 339: 3}, "floats of 24 bits"),
            ({258: (8, 16, 8), 277: 3, 262: 2}, "different bits"),
            ({339: (1, 2, 1), 258: (8, 8, 8), 277: 3, 262: 2}, "samples of several formats"),
            ({317: 7}, "predictor 7"),
            ({32997: 4}, "ImageDepth"),
            ({254: 1, 330: 8}, "only a preview"),
            ({262: 5, 258: (8, 8, 8, 8), 277: 4, 332: 2}, "other inks"),
            ({277: 60_000}, "60000 samples a pixel"),
        ],
    )
    def test_other_layouts_are_refused_by_name(self, tags: dict[int, Any], name: str) -> None:
        with pytest.raises(InvalidImage, match=name) as caught:
            decode_image(tiff([bytes(HEIGHT * WIDTH * 8)], tags), LIMIT)
        assert "damaged" not in str(caught.value)

    def test_no_photometric_interpretation(self) -> None:
        data = bytearray(tiff([bytes(35)]))
        at = data.index(struct.pack("<HHI", 262, 4, 1))
        data[at : at + 2] = struct.pack("<H", 263)
        with pytest.raises(InvalidImage, match="does not say what its samples mean"):
            decode_image(bytes(data), LIMIT)


class TestPalettes:
    INDEX = np.arange(35, dtype=np.uint8).reshape(HEIGHT, WIDTH)

    def paletted(self, entries: NDArray[np.uint16]) -> bytes:
        """Entries: 3×256."""
        return written(self.INDEX, photometric="palette", colormap=entries)

    @pytest.mark.parametrize("factor", [1, 256, 257])
    def test_of_8_and_of_16_bits(self, factor: int) -> None:
        colours = np.random.default_rng(2).integers(0, 256, (3, 256)).astype(np.uint16)
        check(self.paletted(colours * factor), colours.T[self.INDEX].astype(np.uint8))

    def test_black(self) -> None:
        assert not decode_image(self.paletted(np.zeros((3, 256), np.uint16)), LIMIT).any()

    def test_of_another_length(self) -> None:
        data = tiff([self.INDEX.tobytes()], {262: 3, 320: list(range(99))})
        with pytest.raises(InvalidImage, match="its colour map"):
            decode_image(data, LIMIT)


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
        # tifffile writes it before the pixels; others behind them.
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
        """One directory for all planes, as ImageJ itself writes a stack."""
        description = b"ImageJ=1.54f\nimages=4\nchannels=2\nslices=2\nhyperstack=true\n\0"
        planes = self.STACK.astype(">u2").tobytes()
        tags: dict[int, Any] = {258: 16, 270: description}
        data = tiff([planes], tags, size=(W, H), order=">")
        # The strip is of the first plane only.
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
        # Rationals: 6 numbers a plane.
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
