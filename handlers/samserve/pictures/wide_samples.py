"""This module decodes the PNGs and JPEGs whose samples Pillow would reduce to 8 bits or refuse.

They are PNGs with 16-bit colour or 16-bit grey with alpha, and JPEGs with 12 bits.
"""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from . import containers, eight_bit
from .bounds import check_size
from .codecs import codec
from .tiff_directory import Unreadable


def wide_png(data: bytes, max_pixels: int, field: str) -> NDArray[np.uint8] | None:
    """Return the H×W×3 pixels of a PNG with 16-bit colour, or with 16-bit grey and alpha.

    Pillow keeps only 8 of the 16 bits. Its raw mode selects the high or the low byte, so two runs
    read both. Two other decoders were tried: imagecodecs damaged the heap, and OpenCV allocated
    more memory than a picture of the header's size needs.

    Returns:
        None if the PNG is of another kind.

    Raises:
        InvalidImage, TooLarge: see `check_size`.
        Exception: the file is damaged; Pillow raises many classes.
    """
    depth, colour_type = data[24:25], data[25:26]
    if data[12:16] != b"IHDR" or depth != b"\x10" or colour_type not in (b"\2", b"\4", b"\6"):
        return None
    if colour_type == b"\4":
        # A header that declares 8-bit RGBA reads the same bytes as four numbers: the high and
        # low bytes of grey, then those of alpha.
        header = data[12:24] + b"\x08\x06" + data[26:29]
        crc = struct.pack(">I", zlib.crc32(header))
        halves = _decoded_png(data[:12] + header + crc + data[33:], "RGBA", max_pixels, field)
        high, low = halves[:, :, :1], halves[:, :, 1:2]
    else:
        mode = "RGB" if colour_type == b"\2" else "RGBA"
        high, low = (
            _decoded_png(data, mode + half, max_pixels, field)[:, :, :3]
            for half in (";16B", ";16L")
        )
    values = high.astype(np.uint16)
    values <<= 8
    values |= low
    colour = eight_bit.scale(values)
    return colour if colour.shape[2] == 3 else np.repeat(colour, 3, axis=2)


def _decoded_png(data: bytes, rawmode: str, max_pixels: int, field: str) -> NDArray[np.uint8]:
    """Return H×W×n uint8, unpacked by Pillow in this raw mode."""
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        check_size(image.size, max_pixels, field)
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
        image.load()
        return np.asarray(image)


def wide_jpeg(data: bytes, max_pixels: int, field: str) -> NDArray[np.uint8] | None:
    """Return the H×W×3 pixels of a JPEG with 12 bits, which Pillow does not read.

    Returns:
        None if the JPEG has 8 bits, or no frame header.

    Raises:
        InvalidImage, TooLarge: see `check_size`.
        Unreadable: the JPEG is of a kind that is not read.
        Exception: the file is damaged; imagecodecs raises many classes.
    """
    frame = containers.jpeg_frame(data)
    if frame is None or frame.bits == 8:
        return None
    if frame.bits != 12:
        raise Unreadable(f"JPEG with {frame.bits} bits is not read")
    check_size((frame.width, frame.height), max_pixels, field)
    if frame.refusal is not None or frame.components not in (1, 3):
        raise Unreadable(
            "JPEG with 12 bits is read only if it has 1 or 3 components, and is neither lossless, "
            "hierarchical nor arithmetic-coded"
        )
    if not containers.is_whole_jpeg(data):
        raise ValueError("the JPEG has no end mark")
    refusal = containers.too_many_scans(data)
    if refusal is not None:
        raise Unreadable(refusal)
    values = np.asarray(codec("jpeg8_decode")(data))
    if values.ndim == 2:
        return eight_bit.grey_as_rgb(eight_bit.stretch(values))
    return eight_bit.scale(values)
