"""Each compression that is read decodes to the pixels that were written; others are refused."""

from __future__ import annotations

import contextlib
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samserve.errors import InvalidImage
from samserve.pictures.decoding import decode_image
from samserve.pictures.tiff_segments import COMPRESSIONS, REFUSED
from tests.support.picture_files import grey3, save, tiff
from tests.support.scientific_tiffs import (
    COLOUR,
    FLOAT,
    LIMIT,
    WIDE,
    H,
    W,
    X,
    Y,
    check,
    stretched,
    tag_of,
    written,
)

CUTS: list[dict[str, Any]] = [{"rowsperstrip": 7}, {"tile": (16, 32)}]


class TestCompressions:
    """Each lossless compression decodes to the pixels that were written."""

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

        valid = (X + Y) % 7 != 0
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
        """JPEG in tiles, each a separate stream; in YCbCr and in grey."""
        smooth = np.dstack([X * 4, Y * 4, X + Y]).astype(np.uint8)
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
        """A codec reads a long segment even if it decodes to nothing."""
        strip = zlib.compress(bytes(W), 0) + bytes(50_000)
        data = tiff([strip], {259: 8, 278: 1}, size=(W, 1))
        check(data, np.zeros((1, W, 3), np.uint8))
        tags: dict[int, Any] = {259: 8, 278: 1}
        with pytest.raises(InvalidImage, match="overlap"):
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
        """A strip that declares one row has a thousand rows of data."""
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
