"""TIFFs with many kinds of samples are compared with pixels computed from the written arrays.

`tifffile` writes them. `picture_files.tiff` composes the files that tifffile cannot write.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from samserve.errors import InvalidImage
from samserve.pictures.decoding import decode_image
from tests.support.picture_files import HEIGHT, WIDTH, grey3, tiff
from tests.support.scientific_tiffs import (
    COLOUR,
    LIMIT,
    WIDE,
    H,
    W,
    X,
    Y,
    check,
    scaled,
    stretched,
    tag_of,
    written,
)


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
        valid = (X * Y) % 5 != 1
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
        """GDAL omits tiles in sparse files."""
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
        channels = np.dstack([WIDE, (Y * 900).astype(np.uint16)])
        stored = channels if planar == "contig" else channels.transpose(2, 0, 1)
        data = written(np.ascontiguousarray(stored), planarconfig=planar)
        expected = [stretched(channels[..., 0]), stretched(channels[..., 1]), np.zeros_like(X)]
        check(data, np.dstack(expected).astype(np.uint8))

    def test_two_of_8_bits_are_as_they_are_stored(self) -> None:
        data = written(COLOUR[..., :2], planarconfig="contig")
        check(data, np.dstack([COLOUR[..., 0], COLOUR[..., 1], np.zeros((H, W), np.uint8)]))

    def test_three_are_red_green_and_blue(self) -> None:
        channels = np.dstack([WIDE, (Y * 900).astype(np.uint16), (X * 3).astype(np.uint16)])
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
            ({258: 64, 339: 5}, "complex numbers with 64 bits"),
            ({258: 24}, "unsigned integers with 24 bits"),
            ({258: 24, 339: 3}, "floats with 24 bits"),
            ({258: (8, 16, 8), 277: 3, 262: 2}, "different numbers of bits"),
            ({339: (1, 2, 1), 258: (8, 8, 8), 277: 3, 262: 2}, "samples of several formats"),
            ({317: 7}, "predictor 7"),
            ({32997: 4}, "ImageDepth"),
            ({254: 1, 330: 8}, "only a preview"),
            ({262: 5, 258: (8, 8, 8, 8), 277: 4, 332: 2}, "other inks"),
            ({277: 60_000}, "60000 samples per pixel"),
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
        with pytest.raises(InvalidImage, match="does not declare what its samples mean"):
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
