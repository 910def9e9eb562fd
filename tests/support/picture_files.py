"""This module has small pictures, and functions that write them as PNG, TIFF and other files.

Files that Pillow cannot write (16-bit colour, unusual TIFFs) are composed byte by byte.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

LIMIT = 1_000_000

HEIGHT, WIDTH = 5, 7

# 5 rows of 7 pixels; every value differs from its neighbours, and one alpha is 0
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
    """Return a PNG; without rows, only its signature and header."""
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
    """Return an uncompressed TIFF: header, directory, long values, then the strips unchanged."""
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

HUGE = WIDE.astype(np.uint32) * 80_000  # beyond the range of 32 signed bits

FLOAT = WIDE.astype(np.float32) / 7 - 900

COLOUR16 = (np.arange(HEIGHT * WIDTH * 4).reshape(HEIGHT, WIDTH, 4) * 2749 % 65536).astype(
    np.uint16
)


def scaled(colour: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale by the factor that makes the largest value 255."""
    return np.rint(colour.astype(np.float64) * 255 / int(colour.max())).astype(np.uint8)


BITMAP = GREY > 127

INKS = np.where(RGBA > 127, 255, 0).astype(np.uint8)

OF_INKS = np.where(INKS[..., 3:] == 255, 0, 255 - INKS[..., :3]).astype(np.uint8)

GREY_ALPHA = np.ascontiguousarray(RGBA[..., [0, 3]])

PLANES = [RGB[..., band].tobytes() for band in range(3)]

RGB_TAGS: dict[int, TiffTag] = {258: (8, 8, 8), 262: 2, 277: 3}

RGB16_TAGS: dict[int, TiffTag] = {258: (16, 16, 16), 262: 2, 277: 3}

SMOOTH = np.stack(
    [
        np.tile(np.linspace(20, 220, 48), (32, 1)),
        np.tile(np.linspace(200, 60, 32)[:, np.newaxis], (1, 48)),
        np.full((32, 48), 120.0),
    ],
    axis=2,
).astype(np.uint8)
