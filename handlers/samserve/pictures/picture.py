"""Base64 text -> bytes -> the picture as H×W×3 uint8 RGB.

PNG, JPEG, WebP and BMP are read by Pillow, without what lies around their pixels
(`containers`); TIFF, which science writes in many more ways than Pillow reads, by `tiff`.
The pixel limit is held against the header, before anything is decoded. Whatever is wrong
with the text or the bytes is the sender's fault and leaves as a `SamserveError`.

Does not resize, does not turn the picture (the client's coordinates refer to the
pixels as stored, so EXIF orientation is ignored), does not apply colour profiles,
and knows nothing of masks or models.
"""

from __future__ import annotations

import re
import struct
import threading
import time
import warnings
import zlib
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO

import imagecodecs
import numpy as np
import pybase64
from numpy.typing import NDArray

# Imported so that they register themselves: left to itself, Pillow imports all of
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

from samserve.errors import InvalidField, InvalidImage, SamserveError, TooLarge, UnknownImage

from . import containers, eight_bit
from .digests import digest_of_sent, is_reference
from .tiff import TiffPage
from .tiff_directory import Unreadable

DECODING_RULES = 2
"""Rises whenever some file is decoded to other pixels than before: what is remembered of a file
by older rules is forgotten then (`embeddings.py`)."""

# Pillow's own limit warns at 89 million pixels and refuses at 178, whatever ours
# is, and can only be moved for the whole process.
Image.MAX_IMAGE_PIXELS = None

# Pillow reports odd metadata by Python warnings, on which no answer may depend.
# Warning filters belong to the process, and two threads that swap them can leave
# the wrong ones behind: so one picture at a time, which bounds memory as well.
_decoding = threading.Lock()

_SIGNATURES = {
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "TIFF": re.compile(rb"(?:II|MM)(?:[*+]\0|\0[*+])"),
    "WEBP": re.compile(rb"RIFF....WEBP", re.DOTALL),
    "BMP": re.compile(rb"BM"),
}

_WIDE_GREYS = ("I", "I;16", "I;16B", "I;16L", "F")


@dataclass(frozen=True)
class Decoded:
    """A page of an image file.

    Attributes:
        pixels: H×W×3 uint8 RGB.
        pages: how many the file has.
    """

    pixels: NDArray[np.uint8]
    pages: int


class Picture:
    """An image as it was sent, decoded when somebody wants its pixels.

    Args:
        sent: base64 of an image file, the file itself, or a reference to one of these that was
            sent before (`references.py`).
        max_pixels: the most pixels, width times height, that are decoded.
        field: what it is called in the request.
        page: which of its pages, from 0.
    """

    def __init__(
        self, sent: str | bytes, max_pixels: int, field: str = "b64img", page: int = 0
    ) -> None:
        self._sent = sent
        self.max_pixels = max_pixels
        self._field = field
        self.page = page
        self.decoding_s: float | None = None
        """How long decoding took, where somebody wanted the pixels."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was sent or referred to: equal digests and pages, equal pixels."""
        return digest_of_sent(self._sent)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """H×W×3 uint8 RGB.

        Raises:
            UnknownImage: only a reference was sent, and there is nothing to decode in that.
            InvalidField: not base64.
            TooLarge: more than `max_pixels`.
            InvalidImage: no image that we read.
            InvalidField: it has no such page.
        """
        return self._decoded.pixels

    @property
    def pages(self) -> int:
        """How many pages the file has; raises what `pixels` does."""
        return self._decoded.pages

    @cached_property
    def _decoded(self) -> Decoded:
        data = self._sent
        start = time.perf_counter()
        if isinstance(data, str):
            if is_reference(data):
                raise UnknownImage("This picture is not remembered: send it in full.", self._field)
            data = decode_base64(data, self._field)
        decoded = decode_page(data, self.max_pixels, self._field, self.page)
        self.decoding_s = time.perf_counter() - start
        return decoded


def decode_base64(text: str, field: str = "b64img") -> bytes:
    """The bytes that a base64 text stands for.

    A `data:…;base64,` prefix is dropped, and ASCII whitespace anywhere is ignored
    (MIME breaks lines every 76 characters). Otherwise strict, unlike Python's
    default: the standard alphabet only, and padding as it must be.

    Args:
        text: the base64 text.
        field: what the field is called in the request.

    Raises:
        InvalidField: the text is empty, or is not base64.
    """
    text = text.lstrip(" \t\r\n\f\v")
    if text[:5].lower() == "data:":
        prefix, _, text = text.partition(",")
        if not prefix.lower().endswith(";base64"):
            raise InvalidField("the data: URL must have ';base64,' before its data", field)
    try:
        try:
            decoded = pybase64.b64decode(text, validate=True)
        except ValueError:
            # Splitting costs more than decoding, and hardly anyone breaks lines.
            decoded = pybase64.b64decode(b"".join(text.encode("ascii").split()), validate=True)
    except ValueError as exc:
        raise InvalidField(
            "not base64: it holds other characters than A-Z a-z 0-9 + / =, or its padding is wrong",
            field,
        ) from exc
    if not decoded:
        raise InvalidField("the base64 text is empty", field)
    return decoded


def decode_image(
    data: bytes, max_pixels: int, field: str = "b64img", page: int = 0
) -> NDArray[np.uint8]:
    """The picture in `data`, as RGB.

    Pixel [y, x] is the stored pixel in row y from the top, column x from the left:
    neither EXIF's nor TIFF's orientation is applied. Of an animation the first frame, of a JPEG
    of several pictures the first.

    How each kind becomes 8-bit RGB (`docs/pictures.md` has the table of layouts):

    - Transparency is dropped and the colour stored beneath it kept, in palettes too.
      (Where TIFF stores colour multiplied by alpha, that is undone first.)
    - Unsigned samples of up to 8 bits: their whole range becomes 0..255.
    - Grey of 9 bits and more, of signed integers or of floats: the image's own range, minimum to
      maximum, is stretched over 0..255, to the nearest integer, ties to even. Where TIFF says
      that white is zero, the values are negated first.
    - Colour of such samples, and such grey with alpha: one factor for all channels makes the
      largest value 255. Zero stays zero, and negative values become 0, for there is no negative
      light; a picture without any value above zero, but with some below, is refused. Alpha does
      not count.
    - Two or three channels that are neither RGB nor alpha, as fluorescence microscopes have them:
      red, green and blue, in this order. Of more than 8 bits, each is stretched like grey, for
      channels have no common unit.
    - NaN, infinities and what GDAL_NODATA names are left out of the range and become 0, where
      there is a range; so does an image of one value only.
    - CMYK, YCbCr and CIELAB: Pillow's plain formulas, without colour profiles; CMYK of 9 to 16
      bits over the whole range of its samples.

    Args:
        data: the bytes of a PNG, JPEG, TIFF, WebP or BMP file.
        max_pixels: the most pixels, width times height, that are decoded.
        field: what the field is called in the request.
        page: which page of a TIFF, from 0.

    Returns:
        (H, W, 3) uint8, C-contiguous and writable.

    Raises:
        TooLarge: the header claims more than `max_pixels`; nothing was decoded.
        InvalidImage: no image, one that is damaged or incomplete, or of a kind that
            cannot be read.
        InvalidField: there is no such page.
    """
    return decode_page(data, max_pixels, field, page).pixels


def decode_page(data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
    """As `decode_image`, with the number of pages that there are to choose from."""
    kind = _kind(data)
    if kind is None:
        raise InvalidImage("not an image we read: PNG, JPEG, TIFF, WebP or BMP", field)
    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            if kind == "TIFF":
                return _tiff(data, max_pixels, field, page)
            return _other(kind, data, max_pixels, field, page)
        except SamserveError:
            raise
        except Unreadable as exc:
            raise InvalidImage(str(exc), field) from exc
        # Damaged bytes reach deep into parsers and codecs, which promise nothing about
        # what they raise: fuzzing met OSError, SyntaxError, ValueError, TypeError,
        # OverflowError and a class of each codec. Each of them means that the bytes are no picture.
        except Exception as exc:
            raise InvalidImage(
                f"the {kind} is truncated or damaged, or of a kind we do not read", field
            ) from exc


def _tiff(data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
    tiff = TiffPage(data, page)
    _check_page(page, tiff.pages)
    _check_size(tiff.size, max_pixels, field)
    try:
        return Decoded(tiff.rgb(max_pixels), tiff.pages)
    except (SamserveError, Unreadable):
        raise
    except Exception as exc:  # as in `decode_page`, which knows no layout
        raise Unreadable(f"the TIFF is truncated or damaged{tiff.said()}") from exc


def _other(kind: str, data: bytes, max_pixels: int, field: str, page: int) -> Decoded:
    size = _declared_size(kind, data)
    if size is not None:
        _check_size(size, max_pixels, field)
    pages = 1
    if kind == "PNG":
        if data[12:16] == b"CgBI":
            raise Unreadable("PNG in Apple's own variant (CgBI) is not read: save it as plain PNG")
        png = containers.png_pixels(data)
        data, pages = png.data, png.frames
    elif kind == "JPEG":
        data = containers.jpeg_pixels(data)
    elif kind == "WEBP":
        pages = containers.webp_frames(data)
    _check_page(page, pages)
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
        _check_size(image.size, max_pixels, field)
        refusal = _refusal(image, data)
        if refusal is not None:
            raise InvalidImage(refusal, field)
        return Decoded(_rgb(image), pages)


def _check_page(page: int, pages: int) -> None:
    if page >= pages:
        has = "1 page, page 0" if pages == 1 else f"{pages} pages, 0 to {pages - 1}"
        raise InvalidField(f"page {page} does not exist: the picture has {has}.", "page")


def _kind(data: bytes) -> str | None:
    """Pillow's name for the format that the first bytes announce."""
    for kind, signature in _SIGNATURES.items():
        if signature.match(data):
            return kind
    return None


def _declared_size(kind: str, data: bytes) -> tuple[int, int] | None:
    """(width, height) where Pillow would go beyond the header to learn them, else None.

    It reads a PNG as far as the pixel data, texts and profiles included, and hands a
    WebP to a decoder that allocates the canvas.
    """
    if kind == "PNG" and data[12:16] == b"IHDR" and len(data) >= 24:
        width, height = struct.unpack_from(">II", data, 16)
        return width, height
    return containers.webp_size(data) if kind == "WEBP" else None


def _check_size(size: tuple[int, int], max_pixels: int, field: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"the image is {width} x {height} pixels: there is nothing in it", field)
    if width * height > max_pixels:
        raise TooLarge(
            f"the image is {width} x {height} pixels; the limit is {max_pixels} pixels", field
        )


def _wide_png(data: bytes, max_pixels: int, field: str) -> NDArray[np.uint8] | None:
    """A PNG of 16-bit colour, or of such grey with alpha; None where it is another.

    Pillow keeps only 8 of the 16 bits. It can be told to keep the high or the low byte, so two runs
    give both. Two other decoders were tried: imagecodecs damaged the heap, and OpenCV allocated
    more memory than the header's size needs.
    """
    depth, colour_type = data[24:25], data[25:26]
    if data[12:16] != b"IHDR" or depth != b"\x10" or colour_type not in (b"\2", b"\4", b"\6"):
        return None
    if colour_type == b"\4":
        # The same bytes as four numbers of 8 bits: grey's halves and alpha's.
        header = data[12:24] + b"\x08\x06" + data[26:29]
        crc = struct.pack(">I", zlib.crc32(header))
        halves = _opened_png(data[:12] + header + crc + data[33:], "RGBA", max_pixels, field)
        high, low = halves[:, :, :1], halves[:, :, 1:2]
    else:
        mode = "RGB" if colour_type == b"\2" else "RGBA"
        high, low = (
            _opened_png(data, mode + half, max_pixels, field)[:, :, :3] for half in (";16B", ";16L")
        )
    values = high.astype(np.uint16)
    values <<= 8
    values |= low
    colour = eight_bit.scale(values)
    return colour if colour.shape[2] == 3 else np.repeat(colour, 3, axis=2)


def _opened_png(data: bytes, rawmode: str, max_pixels: int, field: str) -> NDArray[np.uint8]:
    """Return H×W×n uint8, unpacked by Pillow in this raw mode."""
    with Image.open(BytesIO(data), formats=["PNG"]) as image:
        _check_size(image.size, max_pixels, field)
        image.tile = [tile._replace(args=rawmode) for tile in image.tile]
        image.load()
        return np.asarray(image)


def _wide_jpeg(data: bytes, max_pixels: int, field: str) -> NDArray[np.uint8] | None:
    """A JPEG of 12 bits, which Pillow does not read; None where it is one of 8."""
    frame = containers.jpeg_frame(data)
    if frame is None or frame.bits == 8:
        return None
    if frame.bits != 12:
        raise Unreadable(f"JPEG of {frame.bits} bits is not read")
    _check_size((frame.width, frame.height), max_pixels, field)
    if frame.refusal is not None or frame.components not in (1, 3):
        raise Unreadable("JPEG of 12 bits is read in grey or colour only, of the usual processes")
    if not containers.is_whole_jpeg(data):
        raise ValueError("it has no end")
    if containers.has_too_many_scans(data):
        raise Unreadable(f"the JPEG has more than {containers.MAX_JPEG_SCANS} scans")
    values = np.asarray(imagecodecs.jpeg8_decode(data))
    if values.ndim == 2:
        return np.repeat(eight_bit.stretch(values)[:, :, np.newaxis], 3, axis=2)
    return eight_bit.scale(values)


_WIDE = {"PNG": _wide_png, "JPEG": _wide_jpeg}


def _refusal(image: ImageFile, data: bytes) -> str | None:
    """Why Pillow must not decode this opened image although it would, or None."""
    # Decoded in Python byte by byte, before Pillow 13 without a bound on memory.
    if image.format == "BMP" and image.tile[0][0] == "bmp_rle":
        return "run-length encoded BMP is not read"
    if image.info.get("progressive") and containers.has_too_many_scans(data):
        return f"the JPEG has more than {containers.MAX_JPEG_SCANS} scans"
    return None


def _rgb(image: ImageFile) -> NDArray[np.uint8]:
    """Decodes the opened image: (H, W, 3) uint8."""
    image.load()
    stored: Image.Image = image
    if stored.mode in _WIDE_GREYS:
        return np.repeat(eight_bit.stretch(np.asarray(stored))[:, :, np.newaxis], 3, axis=2)
    if stored.mode != "RGB":
        # Or converting would work out what colour the transparent one becomes.
        stored.info.pop("transparency", None)
        stored = stored.convert("RGB")
    return np.array(stored)
