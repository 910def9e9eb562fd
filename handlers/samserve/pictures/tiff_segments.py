"""This module decodes one strip or tile of a TIFF into its samples.

`imagecodecs` decompresses. The size of its output is bounded beforehand: a lossless codec gets a
buffer of the segment's size, and an image codec (JPEG, WebP, LERC) only gets bytes whose header
declares that size. A segment that decodes to less is refused, never filled up.

The compressions that are read are an allow-list. It leaves out JPEG 2000 (156 bytes of tiny
precincts make OpenJPEG allocate 5 GB for 4 million pixels, and a truncated stream decodes without
an error), JPEG XL (whose streams can require unbounded work), JPEG XR, JBIG, old-style JPEG and
the codecs of single vendors.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .codecs import codec
from .containers import (
    is_whole_jpeg,
    jpeg_frame,
    too_many_scans,
    webp_size,
)
from .tiff_directory import ByteOrder, Unreadable

NONE, JPEG, LERC, WEBP = 1, 7, 34887, 50001
CCITT = (2, 3, 4)

COMPRESSIONS = {
    1: "none",
    2: "CCITT RLE",
    3: "CCITT group 3",
    4: "CCITT group 4",
    5: "LZW",
    7: "JPEG",
    8: "deflate",
    32773: "PackBits",
    32946: "deflate",
    34887: "LERC",
    34925: "LZMA",
    50000: "zstd",
    50001: "WebP",
}
"""The values of the tag Compression that are read, and their names."""

REFUSED = {
    6: "old-style JPEG",
    9: "JBIG",
    10: "JBIG",
    32766: "NeXT",
    32809: "ThunderScan",
    32908: "PixarFilm",
    32909: "PixarLog",
    33003: "Aperio's JPEG 2000",
    33004: "Aperio's JPEG 2000",
    33005: "Aperio's JPEG 2000",
    33007: "Alternative JPEG",
    34661: "JBIG",
    34676: "SGI LogLuv",
    34677: "SGI LogLuv",
    34712: "JPEG 2000",
    34713: "Nikon NEF",
    34892: "lossy JPEG of DNG",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
}
"""Known values of the tag Compression that are not read, and their names."""

_LOSSLESS: dict[int, str] = {
    5: "lzw_decode",
    8: "zlib_decode",
    32946: "zlib_decode",
    32773: "packbits_decode",
    34925: "lzma_decode",
    50000: "zstd_decode",
}

_ORDINARY_BITS = (8, 16, 32, 64)


@dataclass(frozen=True)
class Coding:
    """How the samples of a page are stored. It is the same for all of its strips or tiles.

    Attributes:
        compression, predictor, fill_order, photometric: the tags' values; see `Layout`.
        bits: the bits of a stored sample.
        dtype: the dtype of a decoded sample, in this machine's byte order.
        byte_order: the file's byte order, `<` or `>`.
        samples: the samples per pixel of a segment.
        height: the height of all segments but the last, in pixels.
        jpeg_tables: the tables that the segments' JPEG streams share, or None.
        t4_options: the tag T4Options, of CCITT group 3.
        lerc_wrapped: 0, or the compression around LERC: 1 deflate, 2 zstd.
        no_data: the value that stands for a missing measurement, or None.
    """

    compression: int
    predictor: int
    fill_order: int
    photometric: int
    bits: int
    dtype: np.dtype[Any]
    byte_order: ByteOrder
    samples: int
    height: int
    jpeg_tables: bytes | None
    t4_options: int
    lerc_wrapped: int
    no_data: float | int | None


def decode(data: bytes, coding: Coding, height: int, width: int) -> NDArray[Any]:
    """Return the samples of one segment, height × width × samples.

    Raises:
        Unreadable: the segment is of a kind that is not read.
        Exception: the segment is damaged; each codec raises its own classes.
    """
    shape = (height, width, coding.samples)
    if coding.compression in _LOSSLESS or coding.compression == NONE:
        return _unpacked(_decompressed(data, coding, height, width), coding, shape)
    if coding.compression in CCITT:
        return _ccitt(data, coding, height, width)
    decoder = {JPEG: _jpeg, LERC: _lerc, WEBP: _webp}[coding.compression]
    values = decoder(data, coding, height, width)
    if values.dtype != coding.dtype:
        raise Unreadable(
            f"the TIFF declares samples of {coding.dtype}, but its "
            f"{COMPRESSIONS[coding.compression]} stream has {values.dtype}"
        )
    return values.reshape(shape)


def row_bytes(coding: Coding, width: int) -> int:
    """Return the number of bytes in a row. Each row begins at a whole byte."""
    return math.ceil(width * coding.samples * coding.bits / 8)


def _decompressed(data: bytes, coding: Coding, height: int, width: int) -> bytes | bytearray:
    size = height * row_bytes(coding, width)
    if coding.fill_order == 2:
        data = bytes(codec("bitorder_decode")(data))
    raw = data
    if coding.compression != NONE:
        raw = codec(_LOSSLESS[coding.compression])(data, out=size)
    if len(raw) < size:
        raise ValueError("a segment is too short")
    return raw[:size]


def _unpacked(raw: bytes | bytearray, coding: Coding, shape: tuple[int, int, int]) -> NDArray[Any]:
    if coding.bits not in _ORDINARY_BITS:
        if coding.predictor != 1:
            raise Unreadable(
                f"TIFF with a predictor for samples with {coding.bits} bits is not read"
            )
        values = codec("packints_decode")(
            raw,
            coding.dtype.newbyteorder(coding.byte_order),
            coding.bits,
            runlen=shape[1] * shape[2],
        )
        return np.asarray(values, coding.dtype).reshape(shape)
    if coding.predictor == 3:
        stored = np.frombuffer(raw, coding.dtype).reshape(shape)
        return np.asarray(codec("floatpred_decode")(stored, axis=-2))
    ordered = coding.dtype.newbyteorder(coding.byte_order)
    values = np.frombuffer(raw, ordered).reshape(shape).astype(coding.dtype, copy=False)
    if coding.predictor == 2:
        # The differences are those of the bits as integers, for floats too.
        integers = values.view(f"u{coding.dtype.itemsize}")
        return np.asarray(codec("delta_decode")(integers, axis=-2)).view(coding.dtype)
    return values


def _ccitt(data: bytes, coding: Coding, height: int, width: int) -> NDArray[Any]:
    """Decode CCITT with Pillow's libtiff, from a TIFF that holds this one strip."""
    tags = {
        256: width,
        257: height,
        258: 1,
        259: coding.compression,
        262: 1,
        266: coding.fill_order,
        273: 0,
        277: 1,
        278: height,
        279: len(data),
    }
    if coding.compression == 3:
        tags[292] = coding.t4_options
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    file = struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + data
    with Image.open(BytesIO(file), formats=["TIFF"]) as image:
        if image.size != (width, height):
            raise ValueError("the strip has another size")
        image.load()
        return np.array(image, np.uint8)[:, :, np.newaxis]


def _jpeg(data: bytes, coding: Coding, height: int, width: int) -> NDArray[Any]:
    frame = jpeg_frame(data)
    if frame is None:
        raise ValueError("the JPEG stream has no frame header")
    if frame.refusal is not None:
        raise Unreadable(f"the TIFF has {frame.refusal}, which is not read")
    # Some writers give the last strip the full height.
    fits = frame.height in (height, coding.height) and frame.width == width
    if not fits or frame.components != coding.samples:
        raise ValueError("the JPEG stream has another size")
    tables = coding.jpeg_tables
    if tables is not None and (jpeg_frame(tables) is not None or b"\xff\xda" in tables):
        raise ValueError("the JPEG tables have a picture")
    if not is_whole_jpeg(data):
        raise ValueError("the JPEG stream has no end mark")
    refusal = too_many_scans(data)
    if refusal is not None:
        raise Unreadable(f"in the TIFF, {refusal}")
    stored: str | None = None
    output = "YCBCR"
    if coding.samples == 1:
        output = "MINISBLACK"
    elif coding.photometric == 6:
        output = "RGB"
    elif coding.photometric == 2:
        # The decoder takes three components without a JFIF header for YCbCr.
        stored, output = None if data[6:10] == b"JFIF" else "RGB", "RGB"
    elif coding.photometric == 5:
        output = "CMYK"
    values = codec("jpeg8_decode")(data, tables=tables, colorspace=stored, outcolorspace=output)
    return np.asarray(values).reshape(frame.height, width, coding.samples)[:height]


def _lerc(data: bytes, coding: Coding, height: int, width: int) -> NDArray[Any]:
    if coding.lerc_wrapped:
        unwrap = {1: codec("zlib_decode"), 2: codec("zstd_decode")}[coding.lerc_wrapped]
        data = bytes(unwrap(data, out=2 * height * row_bytes(coding, width) + 2**16))
    key, version = struct.unpack_from("<6si", data)
    if key != b"Lerc2 ":
        raise Unreadable("the TIFF has LERC version 1, which is not read")
    numbers = list(struct.unpack_from("<6i", data, 14 if version >= 3 else 10))
    rows, columns = numbers[:2]
    samples = numbers[2] if version >= 4 else 1
    blob = numbers[5] if version >= 4 else numbers[4]
    if (rows, columns, samples) != (height, width, coding.samples) or not 0 < blob <= len(data):
        raise ValueError("the LERC stream has another size")
    # A second blob behind this one would be decoded as a second band, into more memory.
    values, masks = codec("lerc_decode")(bytes(data[:blob]), masks=True)
    values = np.asarray(values).reshape(height, width, samples)
    if masks is None or masks.all():
        return values
    fill = np.nan if values.dtype.kind == "f" else coding.no_data
    if fill is None:
        raise Unreadable("the TIFF has LERC with invalid pixels, but no GDAL_NODATA for them")
    filled = np.array(values)
    filled[~masks.reshape(height, width, -1).all(axis=2)] = fill
    return filled


def _webp(data: bytes, coding: Coding, height: int, width: int) -> NDArray[Any]:
    if webp_size(data) != (width, height) or coding.samples not in (3, 4):
        raise ValueError("the WebP stream has another size")
    values = codec("webp_decode")(data, hasalpha=coding.samples == 4)
    return np.asarray(values).reshape(height, width, coding.samples)
