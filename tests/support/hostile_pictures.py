"""Small files that take a decoder much time, by their kind. Each has a header that is not a lie."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from tests.support.picture_files import chunk, save

SIDE = 10_000

EMPTY_SCAN = b"\xff\xda\0\x08\x01\x01\0\0\x3f\0"
"""A scan of the first component without data."""


def _flat(side: int) -> Image.Image:
    return Image.new("RGB", (side, side), (90, 120, 200))


def _scans(jpeg: bytes) -> tuple[bytes, bytes]:
    """Return a JPEG's last scan, and the file without its end mark."""
    whole = jpeg[: jpeg.rindex(b"\xff\xd9")]
    return whole[whole.rindex(b"\xff\xda") :], whole


def _header(side: int) -> bytes:
    """Return what stands before the first scan of a sequential JPEG."""
    jpeg = save(_flat(side), "JPEG")
    return jpeg[: jpeg.index(b"\xff\xda")]


def sequential_jpeg(side: int = SIDE, scans: int = 3000) -> bytes:
    """Return a sequential JPEG with many scans that hold nothing."""
    return _header(side) + EMPTY_SCAN * scans + b"\xff\xd9"


def progressive_jpeg(side: int = SIDE, scans: int = 199) -> bytes:
    """Return a progressive JPEG whose last scan is there many times."""
    last, whole = _scans(save(_flat(side), "JPEG", progressive=True))
    count = scans - whole.count(b"\xff\xda")
    return whole + last * count + b"\xff\xd9"


def hidden_scans(side: int = SIDE, scans: int = 3000) -> bytes:
    """Return a sequential JPEG with an end mark inside a comment, in front of many scans."""
    return _header(side) + EMPTY_SCAN + b"\xff\xfe\0\x04\xff\xd9" + EMPTY_SCAN * scans + b"\xff\xd9"


def many_strips(count: int = 131_072) -> bytes:
    """Return a TIFF with many strips of one row each, which all lie at one offset."""
    width = 700
    row = zlib.compress(bytes(width))
    return _tiff(width, count, [row] * count, rows=1, compression=8, shared=True)


def many_tiles(across: int = 256) -> bytes:
    """Return a TIFF with many small tiles, which all lie at one offset."""
    tile = zlib.compress(bytes(16 * 16))
    side = 16 * across
    return _tiff(side, side, [tile] * across**2, tile=16, compression=8, shared=True)


def interlaced_png(side: int = SIDE) -> bytes:
    """Return an interlaced PNG of one colour, with its pixels in chunks of a few bytes."""
    sizes = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)]
    sizes.append((0, 1, 1, 2))
    packed = zlib.compressobj(9)
    content = b""
    for x, y, dx, dy in sizes:
        width, height = -(-(side - x) // dx), -(-(side - y) // dy)
        content += b"".join(packed.compress(bytes(1 + width)) for _ in range(height))
    content += packed.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 1)
    parts = (chunk(b"IDAT", content[at : at + 8]) for at in range(0, len(content), 8))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    return start + b"".join(parts) + chunk(b"IEND", b"")


def lossless_webp(side: int = 9_999) -> bytes:
    return save(_flat(side), "WEBP", lossless=True, quality=0, method=0)


def bitmap(side: int = 4_000) -> bytes:
    return save(_flat(side), "BMP")


def predicted_tiff(side: int = 8_000) -> bytes:
    """Return a TIFF of floats with the predictor of floats, in one strip."""
    content = zlib.compress(np.zeros((side, side), np.float32).tobytes(), 1)
    return _tiff(side, side, [content], rows=side, compression=8, more={317: 3, 339: 3, 258: 32})


def _tiff(
    width: int,
    height: int,
    segments: list[bytes],
    *,
    rows: int = 0,
    tile: int = 0,
    compression: int,
    shared: bool = False,
    more: dict[int, int] | None = None,
) -> bytes:
    """Return a grey TIFF. `shared`: all segments are equal and lie at one offset."""
    count, stored = len(segments), segments[:1] if shared else segments
    tags: dict[int, int | list[int]] = {256: width, 257: height, 258: 8, 259: compression}
    tags |= {262: 1, 277: 1, **({278: rows} if rows else {322: tile, 323: tile}), **(more or {})}
    at, long = (273, 279) if rows else (324, 325)
    tags[at], tags[long] = [0] * count, [len(segment) for segment in segments]
    arrays_at = 8 + 2 + 12 * len(tags) + 4
    data_at = arrays_at + 8 * count * (count > 1)
    tags[at] = [data_at] * count
    entries, arrays = b"", b""
    for tag, value in sorted(tags.items()):
        values = value if isinstance(value, list) else [value]
        packed = struct.pack(f"<{len(values)}I", *values)
        if len(packed) > 4:
            where = struct.pack("<I", arrays_at + len(arrays))
            arrays += packed
        else:
            where = packed
        entries += struct.pack("<HHI", tag, 4, len(values)) + where
    head = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)
    return head + arrays + b"".join(stored)


def noise_png(side: int) -> bytes:
    """Return a PNG that compresses badly."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


HOSTILE: dict[str, Callable[[], bytes]] = {
    "sequential JPEG with 3000 empty scans": sequential_jpeg,
    "progressive JPEG with 199 scans": progressive_jpeg,
    "JPEG with scans behind a false end mark": hidden_scans,
    "TIFF with strips at one offset": many_strips,
    "TIFF with tiles at one offset": many_tiles,
    "interlaced PNG in chunks of 8 bytes": interlaced_png,
    "lossless WebP": lossless_webp,
    "BMP": bitmap,
    "TIFF of floats with a predictor": predicted_tiff,
}
"""Files by name. Each is made anew, because some are large."""
