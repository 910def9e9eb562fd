"""This module converts a page of a TIFF to RGB, or refuses its layout by name.

`tiff_directory` reads the tags, `tiff_layout` interprets what they say about the samples,
`tiff_segments` decodes strips and tiles, and `eight_bit` converts samples to 8 bits. This module
combines them. `docs/pictures.md` has the table of layouts.

Orientation and colour profiles are ignored, and sub-directories are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from PIL import Image

from . import eight_bit
from .tiff_directory import Directory, Unreadable, directories
from .tiff_layout import CMYK, GREYS, LAB, PALETTE, RGB, WHITE_IS_ZERO, YCBCR, Layout
from .tiff_segments import LERC, NONE, Coding, decode, row_bytes

_WIDTH = 256
_HEIGHT = 257
_FILL_ORDER = 266
_DESCRIPTION = 270
_STRIP_OFFSETS, _STRIP_LENGTHS = 273, 279
_ROWS_PER_STRIP = 278
_T4_OPTIONS = 292
_PREDICTOR = 317
_COLOUR_MAP = 320
_TILE_WIDTH, _TILE_HEIGHT = 322, 323
_TILE_OFFSETS, _TILE_LENGTHS = 324, 325
_JPEG_TABLES = 347
_METAMORPH_PLANES = 33629
_LERC_PARAMETERS = 50674

_MAX_SEGMENTS = 2**17
"""The largest number of strips or tiles of a page. Each takes 10 microseconds or more."""

_MAX_OVERLAP, _SMALL = 2, 1024
"""Bounds on segments that share bytes: together they may be `_MAX_OVERLAP` times as long as the
file, and `_SMALL` bytes more for each. Writers let tiles of one colour share a few bytes."""

_MAX_TABLES = 8192
"""The most bytes of the tables that a page's JPEG streams share. They are parsed again for each
stream. All four tables of a usual JPEG take about 600 bytes."""

_BYTES_PER_PIXEL = 12
"""Bounds the memory of the samples before they are RGB: this times `max_pixels`. It is as much as
32-bit RGB takes, and half as much again as 64-bit grey."""


@dataclass(frozen=True)
class _Grid:
    """How a page is divided into segments: strips or tiles.

    Attributes:
        down, across: the number of segments of a plane, vertically and horizontally.
        height, width: the size of a segment in pixels. The last strip may be lower.
        tiled: whether the segments are tiles, of which the last are padded to full size.
    """

    down: int
    across: int
    height: int
    width: int
    tiled: bool


class TiffPage:
    """One page of a TIFF.

    Args:
        data: the whole file.
        page: the page, from 0.

    Attributes:
        pages: the number of pages in the file. If it is not more than `page`, no other member
            may be used.

    Raises:
        Unreadable: the file ends before its directory, or is damaged.
    """

    def __init__(self, data: bytes, page: int) -> None:
        self._data = data
        form, offsets = directories(data)
        self.pages = len(offsets)
        self._behind = 0  # bytes from the first plane to this one
        self._tags = Directory(data, form, offsets[min(page, len(offsets) - 1)])
        self._layout = Layout(self._tags)
        if len(offsets) == 1:
            self.pages, plane = self._planes()
            self._behind = page * plane

    @cached_property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels.

        Raises:
            Unreadable: the directory's values are damaged.
        """
        return self._tags.integer(_WIDTH, 0), self._tags.integer(_HEIGHT, 0)

    def description(self) -> str:
        """Return the tags that describe the pixels, for the end of an error message."""
        return self._layout.description()

    def rgb(self, max_pixels: int) -> NDArray[np.uint8]:
        """Return H×W×3 uint8.

        Args:
            max_pixels: the limit that `size` is within. It bounds tiles and memory, too.

        Raises:
            Unreadable: the layout is not read.
            Exception: the file is damaged; each codec raises its own classes.
        """
        layout = self._layout
        layout.check()
        channels, alpha = layout.channels, layout.multiplied_by
        stored = self._decoded(channels if alpha is None else [*channels, alpha], max_pixels)
        colour = stored[:, :, : len(channels)]
        if alpha is not None:
            colour = _unmultiplied(colour, stored[:, :, -1:], layout.most)
        try:
            return np.require(self._as_rgb(colour), requirements=["C", "W", "O"])
        except ValueError as exc:
            raise Unreadable(f"the TIFF is not read: {exc}") from exc

    def _planes(self) -> tuple[int, int]:
        """Return the number of pages in a file with one directory, and the bytes of a page.

        ImageJ, MetaMorph and tifffile write a stack as one directory, whose planes follow each
        other. They declare the number of planes in a tag or in the description.
        """
        declared = self._tags.count(_METAMORPH_PLANES) or self._planes_in_description()
        if declared < 2 or self._layout.compression != NONE or _TILE_WIDTH in self._tags:
            return 1, 0
        width, height = self.size
        bits = self._layout.bits * self._layout.samples
        plane = height * math.ceil(width * bits / 8)
        offsets = self._tags.integers(_STRIP_OFFSETS, _MAX_SEGMENTS) or ()
        lengths = self._tags.integers(_STRIP_LENGTHS, _MAX_SEGMENTS) or (plane,)
        ends = [at + length for at, length in zip(offsets, lengths, strict=False)]
        if not plane or not offsets or ends[:-1] != list(offsets[1:]) or sum(lengths) < plane:
            return 1, 0
        return max(1, min(declared, (len(self._data) - offsets[0]) // plane)), plane

    def _planes_in_description(self) -> int:
        description = self._tags.text(_DESCRIPTION)
        if description.startswith("ImageJ="):
            images = re.search(r"^images=(\d{1,9})$", description, re.MULTILINE | re.ASCII)
            return int(images[1]) if images else 1
        if description.startswith("{"):
            try:
                described = orjson.loads(description)
            except orjson.JSONDecodeError:
                return 1
            shape = described.get("shape") if isinstance(described, dict) else None
            width, height = self.size
            per_plane = width * height * self._layout.samples
            if (
                isinstance(shape, list)
                and all(type(n) is int and n > 0 for n in shape)
                and per_plane
            ):
                return math.prod(shape[:16]) // per_plane
        return 1

    def _grid(self, max_pixels: int) -> _Grid:
        width, height = self.size
        if _TILE_WIDTH in self._tags:
            across, down = self._tags.integer(_TILE_WIDTH, 0), self._tags.integer(_TILE_HEIGHT, 0)
            if across < 1 or down < 1:
                raise Unreadable("the TIFF is damaged: its tiles have no size")
            if across * down > max_pixels:
                raise Unreadable(
                    f"the TIFF's tiles have {across * down} pixels; "
                    f"the limit is {max_pixels} pixels"
                )
            grid = _Grid(math.ceil(height / down), math.ceil(width / across), down, across, True)
            padded = grid.down * grid.across * across * down
            # A narrow picture in wide tiles, or a flat one in high tiles, is mostly padding.
            if padded > 2 * max(max_pixels, 2 * width * height):
                raise Unreadable(
                    f"the TIFF's tiles have {padded} pixels together: too much padding"
                )
        else:
            rows = min(self._tags.integer(_ROWS_PER_STRIP, height), height)
            if rows < 1:
                raise Unreadable("the TIFF is damaged: its strips have no rows")
            grid = _Grid(math.ceil(height / rows), 1, rows, width, False)
        layout = self._layout
        samples_of_segment = grid.height * grid.width * (1 if layout.separate else layout.samples)
        samples_of_page = width * height * len(layout.channels)
        in_memory = max(samples_of_segment, samples_of_page) * layout.dtype.itemsize
        limit = _BYTES_PER_PIXEL
        if in_memory > limit * max_pixels:
            raise Unreadable(
                f"the TIFF's samples take {in_memory} bytes; the limit is "
                f"{limit * max_pixels} bytes, {limit} per pixel" + layout.description()
            )
        return grid

    def _places(self, grid: _Grid, coding: Coding) -> list[tuple[int, int]]:
        """Return (offset, length) of every segment in bytes."""
        tags, planes = self._tags, self._layout.samples if self._layout.separate else 1
        count = grid.down * grid.across * planes
        if count > _MAX_SEGMENTS:
            raise Unreadable(f"the TIFF has {count} strips or tiles; at most {_MAX_SEGMENTS}")
        at, long = (_STRIP_OFFSETS, _STRIP_LENGTHS)
        if grid.tiled:
            # Some writers put the tiles' offsets and lengths into the tags for strips.
            at = _TILE_OFFSETS if _TILE_OFFSETS in tags else at
            long = _TILE_LENGTHS if _TILE_LENGTHS in tags else long
        offsets = tags.integers(at, _MAX_SEGMENTS) or ()
        lengths = tags.integers(long, _MAX_SEGMENTS)
        most = grid.height * row_bytes(coding, grid.width)
        if lengths is None and self._layout.compression == NONE:
            lengths = (most,) * count
        elif lengths is None and count == len(offsets) == 1:
            lengths = (len(self._data) - offsets[0],)
        if len(offsets) != count or len(lengths or ()) != count:
            raise Unreadable(
                "the TIFF is damaged: its number of strips or tiles does not fit its size"
            )
        if self._layout.compression == NONE:
            # In a stack, the length of a strip may reach to the end of the file.
            lengths = tuple(min(length, most) for length in lengths or ())
        elif sum(lengths or ()) > _MAX_OVERLAP * len(self._data) + count * _SMALL:
            # A codec reads the whole segment, even if it decodes to nothing.
            raise Unreadable("the TIFF is damaged: its strips or tiles overlap")
        return list(zip(offsets, lengths or (), strict=True))

    def _coding(self, grid: _Grid) -> Coding:
        layout = self._layout
        lerc = self._tags.integers(_LERC_PARAMETERS) or (0, 0)
        wrapped = lerc[1] if layout.compression == LERC and len(lerc) > 1 else 0
        if wrapped not in (0, 1, 2):
            raise Unreadable(f"TIFF with LERC in compression {wrapped} is not read")
        return Coding(
            compression=layout.compression,
            predictor=self._tags.integer(_PREDICTOR, 1),
            fill_order=self._tags.integer(_FILL_ORDER, 1),
            photometric=YCBCR if layout.is_ycbcr_jpeg else layout.photometric,
            bits=layout.bits,
            dtype=layout.dtype,
            byte_order=self._tags.byte_order,
            samples=1 if layout.separate else layout.samples,
            height=grid.height,
            jpeg_tables=self._tags.bytes_of(_JPEG_TABLES, _MAX_TABLES),
            t4_options=self._tags.integer(_T4_OPTIONS, 0),
            lerc_wrapped=wrapped,
            no_data=layout.no_data,
        )

    def _decoded(self, samples: list[int], max_pixels: int) -> NDArray[Any]:
        """Return these samples of the page as they are stored: H×W×len(samples)."""
        (width, height), grid = self.size, self._grid(max_pixels)
        coding = self._coding(grid)
        places = self._places(grid, coding)
        if not any(length for _, length in places):
            raise Unreadable("the TIFF has no pixels: all its strips or tiles are empty")
        segments = grid.down * grid.across
        if segments == 1 and not self._layout.separate and not grid.tiled:
            whole = self._segment(places[0], grid, coding, height)
            return whole if whole.shape[2] == len(samples) else whole[:, :, samples]
        stored = np.empty((height, width, len(samples)), coding.dtype)
        for target, first in self._targets(stored, samples):
            for index in range(segments):
                y, x = index // grid.across * grid.height, index % grid.across * grid.width
                rows, columns = min(grid.height, height - y), min(grid.width, width - x)
                segment = self._segment(places[first * segments + index], grid, coding, rows)
                kept = segment[:rows, :columns]
                if kept.shape[2] != target.shape[2]:
                    kept = kept[:, :, samples]
                target[y : y + rows, x : x + columns] = kept
        return stored

    def _targets(
        self, stored: NDArray[Any], samples: list[int]
    ) -> Iterator[tuple[NDArray[Any], int]]:
        """Yield for each plane the part of the output that it fills, and its number in the file."""
        if not self._layout.separate:
            yield stored, 0
            return
        for place, plane in enumerate(samples):
            yield stored[:, :, place : place + 1], plane

    def _segment(
        self, place: tuple[int, int], grid: _Grid, coding: Coding, rows: int
    ) -> NDArray[Any]:
        """Return the samples of a strip or tile."""
        offset, length = place
        height = grid.height if grid.tiled else rows
        if not offset and not length:
            # GDAL omits a segment that has only "no data", or only zeros.
            fill = 0 if coding.no_data is None else coding.no_data
            return np.full((height, grid.width, coding.samples), fill, coding.dtype)
        offset += self._behind
        if offset + length > len(self._data):
            raise Unreadable("the TIFF is truncated or damaged: its pixels lie beyond its end")
        return decode(self._data[offset : offset + length], coding, height, grid.width)

    def _as_rgb(self, colour: NDArray[Any]) -> NDArray[np.uint8]:
        """Convert the stored H×W×n samples of the picture to RGB."""
        photometric = self._layout.photometric
        if photometric in GREYS:
            return self._channels_as_rgb(colour)
        if photometric == RGB:
            if self._layout.narrow:
                return eight_bit.share(colour, self._layout.most)
            return eight_bit.scale(colour, self._layout.no_data)
        if photometric == PALETTE:
            palette = self._palette()
            return np.asarray(palette[colour[:, :, 0]])
        mode = {CMYK: "CMYK", YCBCR: "YCbCr", LAB: "LAB"}[photometric]
        narrow = np.ascontiguousarray(eight_bit.share(colour, self._layout.most))
        # Pillow's formulas, as for the other formats.
        return np.array(Image.frombytes(mode, self.size, narrow.tobytes()).convert("RGB"))

    def _channels_as_rgb(self, channels: NDArray[Any]) -> NDArray[np.uint8]:
        inverted = self._layout.photometric == WHITE_IS_ZERO
        if self._layout.narrow:
            grey = eight_bit.share(channels, self._layout.most)
            grey = 255 - grey if inverted else grey
        elif channels.shape[2] == 1 and self._layout.samples > 1 and not inverted:
            grey = eight_bit.scale(channels, self._layout.no_data)  # grey with alpha, as in PNG
        else:
            # The channels of a microscope have no common unit.
            grey = np.dstack(
                [
                    eight_bit.stretch(
                        channels[:, :, index], self._layout.no_data, inverted=inverted
                    )
                    for index in range(channels.shape[2])
                ]
            )
        if grey.shape[2] == 1:
            return np.repeat(grey, 3, axis=2)
        if grey.shape[2] == 2:
            return np.dstack([grey, np.zeros_like(grey[:, :, :1])])
        return grey

    def _palette(self) -> NDArray[np.uint8]:
        """Return the colour of each index: 2^bits × 3."""
        stored = self._tags.integers(_COLOUR_MAP, 3 * 2**16) or ()
        if len(stored) != 3 * 2**self._layout.bits:
            raise ValueError("its colour map does not have three values for each index")
        entries = np.array(stored, np.uint16).reshape(3, -1).T
        # The specification says 16 bits. Like libtiff, take a map without values above 255 for 8.
        return (entries >> 8 if entries.max() > 255 else entries).astype(np.uint8)


def _unmultiplied(colour: NDArray[Any], alpha: NDArray[Any], most: int) -> NDArray[Any]:
    """Divide the colours by alpha. If alpha is 0, the stored colour stays."""
    if colour.dtype.kind == "f":
        divisor = np.where(alpha > 0, alpha, 1)
        return np.asarray(colour / divisor, colour.dtype)
    if colour.dtype.kind != "u" or colour.dtype.itemsize > 4:
        raise Unreadable("TIFF with such samples multiplied by alpha is not read")
    result = np.empty_like(colour)
    for row, (stored, opacity) in enumerate(zip(colour, alpha, strict=True)):
        wide = stored.astype(np.uint64)
        divisor = np.where(opacity > 0, opacity, most).astype(np.uint64)
        result[row] = np.minimum(wide * np.uint64(most) // divisor, most)
    return result
