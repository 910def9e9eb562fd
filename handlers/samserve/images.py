"""Base64 text -> bytes -> the picture as H×W×3 uint8 RGB.

What Pillow reads of PNG, JPEG, TIFF, WebP and BMP is read; the pixel limit is held
against the header, before anything is decoded. Whatever is wrong with the text or
the bytes is the sender's fault and leaves as a `SamserveError`.

Does not resize, does not turn the picture (the client's coordinates refer to the
pixels as stored, so EXIF orientation is ignored), does not apply colour profiles,
does not look at a second page, and knows nothing of masks or models.
"""

from __future__ import annotations

import re
import struct
import threading
import time
import warnings
from functools import cached_property
from io import BytesIO
from typing import Any

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
from PIL.TiffImagePlugin import TiffImageFile

from . import tiff
from .errors import InvalidField, InvalidImage, SamserveError, TooLarge, UnknownImage
from .references import digest_of_sent, is_reference

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

# Each scan of a progressive JPEG passes over the whole picture, and costs the
# sender some hundred bytes: 6 MB of scans would keep a worker busy for an hour.
# Encoders write about ten.
_MAX_JPEG_SCANS = 200


class Picture:
    """An image as it was sent, decoded when somebody wants its pixels.

    Args:
        sent: base64 of an image file, the file itself, or a reference to one of these that was
            sent before (`references.py`).
        max_pixels: the most pixels, width times height, that are decoded.
        field: what it is called in the request.
    """

    def __init__(self, sent: str | bytes, max_pixels: int, field: str = "b64img") -> None:
        self._sent = sent
        self.max_pixels = max_pixels
        self._field = field
        self.decoding_s: float | None = None
        """How long decoding took, where somebody wanted the pixels."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of what was sent or referred to: equal digests, equal pixels."""
        return digest_of_sent(self._sent)

    @cached_property
    def pixels(self) -> NDArray[np.uint8]:
        """H×W×3 uint8 RGB.

        Raises:
            UnknownImage: only a reference was sent, and there is nothing to decode in that.
            InvalidField: not base64.
            TooLarge: more than `max_pixels`.
            InvalidImage: no image that we read.
        """
        data = self._sent
        start = time.perf_counter()
        if isinstance(data, str):
            if is_reference(data):
                raise UnknownImage("This picture is not remembered: send it in full.", self._field)
            data = decode_base64(data, self._field)
        pixels = decode_image(data, self.max_pixels, self._field)
        self.decoding_s = time.perf_counter() - start
        return pixels


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


def decode_image(data: bytes, max_pixels: int, field: str = "b64img") -> NDArray[np.uint8]:
    """The picture in `data`, as RGB.

    Pixel [y, x] is the stored pixel in row y from the top, column x from the left:
    neither EXIF's nor TIFF's orientation is applied. Of several pages or frames, the
    first.

    How each kind becomes 8-bit RGB:

    - Transparency is dropped and the colour stored beneath it kept, in palettes too.
      (Where TIFF stores colour multiplied by alpha, that is undone first.)
    - Grey of 12, 16 or 32 bits or of floats: the image's own range, minimum to
      maximum, is stretched over 0..255, to the nearest integer, ties to even. NaN
      and infinities are left out of the range and become 0, and so does a constant
      image. Where TIFF says that white is zero, the values are negated first.
    - Colour of 16 bits, and PNG's 16-bit grey with alpha: the high byte. There is no
      stretching, which would shift the colours.
    - CMYK, YCbCr and CIELAB: Pillow's plain formulas, without colour profiles.

    Args:
        data: the bytes of a PNG, JPEG, TIFF, WebP or BMP file.
        max_pixels: the most pixels, width times height, that are decoded.
        field: what the field is called in the request.

    Returns:
        (H, W, 3) uint8, C-contiguous and writable.

    Raises:
        TooLarge: the header claims more than `max_pixels`; nothing was decoded.
        InvalidImage: no image, one that is damaged or incomplete, or of a kind that
            cannot be read.
    """
    kind = _kind(data)
    if kind is None:
        raise InvalidImage("not an image we read: PNG, JPEG, TIFF, WebP or BMP", field)
    size = _declared_size(kind, data)
    if size is not None:
        _check_size(size, max_pixels, field)
    with _decoding, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(BytesIO(data), formats=[kind]) as image:
                _check_size(image.size, max_pixels, field)
                refusal = _refusal(image, data, max_pixels)
                if refusal is not None:
                    raise InvalidImage(refusal, field)
                return _rgb(image)
        except SamserveError:
            raise
        # Damaged bytes reach deep into Pillow's parsers, which promise nothing about
        # what they raise: fuzzing met OSError, SyntaxError, ValueError, TypeError and
        # OverflowError. Whatever it is, these bytes are no picture.
        except Exception as exc:
            layout = tiff.layout(data) if kind == "TIFF" else ""
            raise InvalidImage(
                f"the {kind} is truncated or damaged, or of a kind we do not read{layout}", field
            ) from exc


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
    if kind == "WEBP" and len(data) >= 30:
        chunk = data[12:16]
        if chunk == b"VP8X":
            return (
                int.from_bytes(data[24:27], "little") + 1,
                int.from_bytes(data[27:30], "little") + 1,
            )
        if chunk == b"VP8L":
            bits = int.from_bytes(data[21:25], "little")
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        if chunk == b"VP8 ":
            width, height = struct.unpack_from("<HH", data, 26)
            return width & 0x3FFF, height & 0x3FFF
    return None


def _check_size(size: tuple[int, int], max_pixels: int, field: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"the image is {width} x {height} pixels: there is nothing in it", field)
    if width * height > max_pixels:
        raise TooLarge(
            f"the image is {width} x {height} pixels; the limit is {max_pixels} pixels", field
        )


def _refusal(image: ImageFile, data: bytes, max_pixels: int) -> str | None:
    """Why Pillow must not decode this opened image although it would, or None."""
    if isinstance(image, TiffImageFile):
        return tiff.refusal(image, max_pixels)
    # Decoded in Python byte by byte, before Pillow 13 without a bound on memory.
    if image.format == "BMP" and image.tile[0][0] == "bmp_rle":
        return "run-length encoded BMP is not read"
    if image.info.get("progressive") and data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        return f"the JPEG has more than {_MAX_JPEG_SCANS} scans"
    return None


def _rgb(image: ImageFile) -> NDArray[np.uint8]:
    """Decodes the opened image: (H, W, 3) uint8."""
    stored: Image.Image = image
    if isinstance(image, TiffImageFile):
        stored = tiff.load_as_stored(image)
    else:
        image.load()
    if stored.mode in _WIDE_GREYS:
        values = np.asarray(stored)
        if isinstance(image, TiffImageFile):
            values = tiff.grey_values(image, values)
        return np.repeat(_stretch(values)[:, :, np.newaxis], 3, axis=2)
    if stored.mode == "La":  # the one mode with no way to RGB
        stored = stored.convert("LA")
    if stored.mode != "RGB":
        # Or converting would work out what colour the transparent one becomes.
        stored.info.pop("transparency", None)
        stored = stored.convert("RGB")
    return np.array(stored)


def _stretch(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Any real values -> 0..255 over their own finite range; see `decode_image`."""
    scaled = values.astype(np.float64)  # holds 32-bit integers exactly, and float32's whole range
    finite = np.isfinite(scaled)
    low = scaled.min(where=finite, initial=np.inf)
    high = scaled.max(where=finite, initial=-np.inf)
    if not low < high:
        return np.zeros(values.shape, np.uint8)
    scaled[~finite] = low
    scaled -= low
    scaled *= 255
    scaled /= high - low
    return np.rint(scaled, out=scaled).astype(np.uint8)
