"""This module decodes the bytes of an image file into H×W×3 uint8 RGB.

Pillow reads PNG, JPEG, WebP and BMP, after `containers` has removed their metadata; `wide_samples`
reads the PNGs and JPEGs with more than 8 bits. `tiff` reads TIFF, because science writes TIFFs in
many more ways than Pillow reads.

The pixel limit is compared with the header, before anything is decoded. Every error in the bytes
is the sender's and raised as a `SamserveError`.

EXIF orientation is ignored, because the client's coordinates refer to the pixels as stored. Colour
profiles are ignored too. Nothing is resized.
"""

from __future__ import annotations

import re
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

# These plugins register themselves when they are imported. Otherwise Pillow would import all of
# its forty plugins at the first TIFF or WebP, in the middle of a request.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)
from PIL.ImageFile import ImageFile

from samserve.errors import InvalidField, InvalidImage, SamserveError

from . import containers, eight_bit
from .bounds import check_page, check_size
from .tiff import TiffPage
from .tiff_directory import Unreadable
from .wide_samples import wide_jpeg, wide_png

DECODING_RULES = 2
"""The version of the rules in `decode_image`.

It rises whenever some file decodes to other pixels than before. The embedding cache then no
longer uses what older versions stored about a file (`embeddings/cache.py`).
"""

# Pillow's limit warns at 89 million pixels and refuses at 178 million. It belongs to the process,
# so it cannot follow `max_pixels`.
Image.MAX_IMAGE_PIXELS = None

# Pillow reports unusual metadata by Python warnings, and no answer may depend on these. Warning
# filters belong to the process: two threads that set and reset them can leave the wrong ones. So
# one picture is decoded at a time, which bounds memory as well.
_decoding = threading.Lock()

_SIGNATURES = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "TIFF": re.compile(rb"(?:II|MM)(?:[*+]\0|\0[*+])"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM"),
}

_WIDE_GREYS = ("I", "I;16", "I;16B", "I;16L", "F")
_WIDE = {"PNG": wide_png, "JPEG": wide_jpeg}


@dataclass(frozen=True)
class Decoded:
    """A page of an image file.

    Attributes:
        pixels: H×W×3 uint8 RGB.
        pages: the number of pages in the file.
    """

    pixels: NDArray[np.uint8]
    pages: int


Decode = Callable[[bytes, int, str, int], Decoded]
"""A function like `decode_page`, which may decode elsewhere."""


def decode_image(
    data: bytes, max_pixels: int, field: str = "b64img", page: int = 0
) -> NDArray[np.uint8]:
    """Return the picture in `data` as RGB.

    Pixel [y, x] is the stored pixel in row y from the top, column x from the left:
    neither EXIF's nor TIFF's orientation is applied. An animation gives its first frame, a JPEG
    with several pictures its first picture.

    The rules by which each kind becomes 8-bit RGB (`docs/pictures.md` has the table of layouts):

    - Transparency is dropped and the colour stored beneath it is kept, in palettes too.
      (If a TIFF stores colour multiplied by alpha, it is divided by alpha first.)
    - Unsigned samples with up to 8 bits: their whole range is scaled to 0..255.
    - Grey with 9 bits or more, with signed integers or with floats: the image's range, minimum to
      maximum, is stretched over 0..255, to the nearest integer, ties to even. If a TIFF declares
      that white is zero, the values are negated first.
    - Colour with such samples, and such grey with alpha: one factor for all channels makes the
      largest value 255. Zero stays zero, and negative values become 0, because light is not
      negative. A picture that has negative values and none above zero is refused. Alpha is not
      part of the range.
    - Two or three channels that are neither RGB nor alpha, as from fluorescence microscopes:
      they become red, green and blue, in this order. With more than 8 bits, each is stretched like
      grey, because the channels have no common unit.
    - NaN, infinities and the value in GDAL_NODATA are left out of the range and become 0, if
      there is a range. An image with one value only becomes 0.
    - CMYK, YCbCr and CIELAB: Pillow's formulas, without colour profiles; CMYK with 9 to 16
      bits is scaled from the whole range of its samples.

    Args:
        data: the bytes of a PNG, JPEG, TIFF, WebP or BMP file.
        max_pixels: the largest number of pixels, width times height, that is decoded.
        field: the name of the picture's field in the request, for errors.
        page: the page of a TIFF, from 0.

    Returns:
        (H, W, 3) uint8, C-contiguous and writable.

    Raises:
        TooLarge: the header declares more than `max_pixels`; nothing was decoded.
        InvalidImage: the bytes are no image, are damaged or incomplete, or of a kind that is not
            read.
        InvalidField: the file has no such page.
    """
    return decode_page(data, max_pixels, field, page).pixels


def decode_page(data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
    """Like `decode_image`, but also return the file's number of pages."""
    kind = _kind(data)
    if kind is None:
        raise InvalidImage("not an image of a kind we read: PNG, JPEG, TIFF, WebP or BMP", field)
    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind == "TIFF":
                return _tiff(data, max_pixels, field, page)
            return _other(kind, data, max_pixels, field, page)
        except (SamserveError, MemoryError):
            raise
        except Unreadable as exc:
            raise InvalidImage(str(exc), field) from exc
        # Parsers and codecs document no list of what damaged bytes make them raise. Fuzzing
        # produced OSError, SyntaxError, ValueError, TypeError, OverflowError and a class of each
        # codec. All of them mean that the bytes are no picture.
        except Exception as exc:
            raise InvalidImage(
                f"the {kind} is truncated or damaged, or of a kind we do not read", field
            ) from exc


def is_tiff(data: bytes) -> bool:
    """Return whether these are the first bytes of a TIFF."""
    return _kind(data) == "TIFF"


def declared_pixels(data: bytes, page: int) -> int | None:
    """Return the number of pixels that the header declares; None if it is not found.

    Nothing is decoded or checked: `decode_page` says what is wrong with a file.
    """
    size = declared_size(data, page)
    return None if size is None else size[0] * size[1]


def declared_size(data: bytes, page: int) -> tuple[int, int] | None:
    """Return the (width, height) that the header declares; None as `declared_pixels`."""
    kind = _kind(data)
    try:
        if kind is None:
            return None
        if kind == "TIFF":
            tiff = TiffPage(data, page)
            size: tuple[int, int] | None = tiff.size if page < tiff.pages else None
        elif kind == "JPEG":
            frame = containers.jpeg_frame(data)
            size = None if frame is None else (frame.width, frame.height)
        elif kind == "BMP":
            # The oldest header, of 12 bytes, has sizes of 16 bits.
            old = struct.unpack_from("<I", data, 14)[0] == 12
            size = struct.unpack_from("<HH" if old else "<ii", data, 18)
        else:
            size = _declared_size(kind, data)
    except (Unreadable, struct.error):
        return None
    return None if size is None else (abs(size[0]), abs(size[1]))


def _tiff(data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
    tiff = TiffPage(data, page)
    check_page(page, tiff.pages)
    check_size(tiff.size, max_pixels, field)
    try:
        return Decoded(tiff.rgb(max_pixels), tiff.pages)
    except (SamserveError, Unreadable, MemoryError):
        raise
    except Exception as exc:  # as in `decode_page`, but this message can describe the layout
        raise Unreadable(f"the TIFF is truncated or damaged{tiff.description()}") from exc


def _other(kind: str, data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
    """Decode a PNG, JPEG, WebP or BMP."""
    size = _declared_size(kind, data)
    if size is not None:
        check_size(size, max_pixels, field)
    pages = 1
    if kind == "PNG":
        if data[12:16] == b"CgBI":
            raise Unreadable("PNG in Apple's variant (CgBI) is not read: save it as standard PNG")
        png = containers.png_pixels(data)
        data, pages = png.data, png.frames
    elif kind == "JPEG":
        data = containers.jpeg_pixels(data)
    elif kind == "WEBP":
        pages = containers.webp_frames(data)
    check_page(page, pages)
    if page:
        raise InvalidField(
            f"page {page} cannot be chosen: only a TIFF has pages. Of the {pages} frames of this "
            f"animated {kind}, only the first is read, as page 0.",
            "page",
        )
    pixels = _WIDE[kind](data, max_pixels, field) if kind in _WIDE else None
    if pixels is not None:
        return Decoded(pixels, pages)
    with Image.open(BytesIO(data), formats=[kind]) as image:
        check_size(image.size, max_pixels, field)
        refusal = _refusal(image, data)
        if refusal is not None:
            raise InvalidImage(refusal, field)
        return Decoded(_rgb(image), pages)


def _kind(data: bytes) -> str | None:
    """Return Pillow's name for the format whose signature the first bytes are."""
    for kind, signature in _SIGNATURES.items():
        if signature.match(data):
            return kind
    return None


def _declared_size(kind: str, data: bytes) -> tuple[int, int] | None:
    """Return (width, height) in pixels, if Pillow would read more than the header to learn it.

    Pillow reads a PNG up to the pixel data, texts and profiles included. It gives a WebP to a
    decoder that allocates the canvas.
    """
    if kind == "PNG" and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    return containers.webp_size(data) if kind == "WEBP" else None


def _refusal(image: ImageFile, data: bytes) -> str | None:
    """Return why this opened image must not be decoded by Pillow; None if it may be."""
    # Pillow decodes it in Python byte by byte, before version 13 without a bound on memory.
    if image.format == "BMP" and image.tile[0][0] == "bmp_rle":
        return "run-length encoded BMP is not read"
    return containers.too_many_scans(data) if image.format == "JPEG" else None


def _rgb(image: ImageFile) -> NDArray[np.uint8]:
    """Decode the opened image into (H, W, 3) uint8."""
    image.load()
    stored: Image.Image = image
    if stored.mode in _WIDE_GREYS:
        return eight_bit.grey_as_rgb(eight_bit.stretch(np.asarray(stored)))
    if stored.mode != "RGB":
        # Otherwise convert() would compute a colour for the transparent pixels.
        stored.info.pop("transparency", None)
        stored = stored.convert("RGB")
    return np.array(stored)
