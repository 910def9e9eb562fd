"""This module reads a picture from wherever a caller has it, into the bytes of an image file.

A caller has a path, a URL, bytes, a PIL image or an array. The client sends the file's bytes to a
server, and the library decodes them, so that both see the same pixels.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PillowImage

from samserve.errors import InvalidField, InvalidImage, TooLarge, Unreachable

from . import eight_bit
from .decoding import declared_size, is_tiff
from .tiff import TiffPage
from .tiff_directory import Directory, Unreadable, directories

Source: TypeAlias = "str | os.PathLike[str] | bytes | PillowImage.Image | NDArray[Any]"

MAX_DOWNLOAD = 2**28
"""The largest picture in bytes that is fetched from a URL."""

FETCH_TIMEOUT_S = 60.0

_SUBFILE_TYPE = 254
_REDUCED_OR_MASK = 1 | 4


@dataclass(frozen=True)
class PictureFile:
    """The bytes of an image file, and what its header says.

    Attributes:
        content: the file's bytes.
        name: the file's name; an empty text if it has none.
        page: the page that was chosen, from 0.
        pages: the number of pages in the file.
        size: (height, width) of that page.
        tags: the tags of that page of a TIFF; None for other kinds of files.
    """

    content: bytes
    name: str
    page: int
    pages: int
    size: tuple[int, int]
    tags: Directory | None


def read_source(source: Source, page: int | None = None) -> PictureFile:
    """Read a picture, and choose its page.

    Args:
        source: a path, an http(s) URL, the bytes of an image file, a PIL image, or an array: H×W
            grey, H×W×3 RGB or H×W×4 RGBA, of bool, integers or floats. Samples that are not uint8
            become 8 bits by the rules for files (docs/pictures.md).
        page: the page of a TIFF, from 0. None: the only one.

    Raises:
        OSError: the file cannot be read.
        Unreachable: the URL cannot be fetched.
        InvalidImage: it is no picture.
        InvalidField: the file has several pages and `page` is None, or it has no such page.
    """
    content, name = _content_of(source)
    return choose_page(content, name, page)


def choose_page(content: bytes, name: str, page: int | None) -> PictureFile:
    """Read the header of an image file; raises what `read_source` raises."""
    shown = name or "the picture"
    if page is not None:
        page = whole_number(page, "page")
    try:
        choices, pages = pictures_in(content)
    except Unreadable as exc:
        raise InvalidImage(f"{shown}: {exc}", "picture") from exc
    if page is None:
        if len(choices) > 1:
            last = choices[-1]
            raise InvalidField(
                f"{shown} has {pages} pages: choose one of them with page=0 to page={last}.", "page"
            )
        page = choices[0]
    if page >= pages:
        raise InvalidField(
            f"page {page} does not exist: {shown} has {pages} page{'s' if pages > 1 else ''}"
            + (f", 0 to {pages - 1}." if pages > 1 else "."),
            "page",
        )
    size = declared_size(content, page)
    if size is None or min(size) < 1:
        raise InvalidImage(
            f"{shown} is not an image of a kind we read (PNG, JPEG, TIFF, WebP or BMP), or is "
            "damaged.",
            "picture",
        )
    width, height = size
    return PictureFile(content, name, page, pages, (height, width), _tags(content, page))


def pictures_in(content: bytes) -> tuple[list[int], int]:
    """Return the pages of a file that are pictures of their own, and the number of all pages.

    The overviews and masks of a GeoTIFF are pages of the file, but no pictures of their own.

    Raises:
        Unreadable: the TIFF's directories are damaged.
    """
    if not is_tiff(content):
        return [0], 1
    form, offsets = directories(content)
    if len(offsets) == 1:
        pages = TiffPage(content, 0).pages
        return list(range(pages)), pages
    kinds = (Directory(content, form, at).integer(_SUBFILE_TYPE, 0) for at in offsets)
    own = [index for index, kind in enumerate(kinds) if not kind & _REDUCED_OR_MASK]
    return own or [0], len(offsets)


def _tags(content: bytes, page: int) -> Directory | None:
    if not is_tiff(content):
        return None
    form, offsets = directories(content)
    return Directory(content, form, offsets[min(page, len(offsets) - 1)])


def _content_of(source: Source) -> tuple[bytes, str]:
    """Return the bytes of an image file, and its name."""
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        return _fetched(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return path.read_bytes(), path.name
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source), ""
    if isinstance(source, PillowImage.Image):
        name = getattr(source, "filename", "")
        return file_of(source), Path(name).name if isinstance(name, str) else ""
    if isinstance(source, np.ndarray):
        return file_of(PillowImage.fromarray(as_8_bits(source))), ""
    raise TypeError(
        "picture must be a path, a URL, bytes, a PIL image or a NumPy array, not "
        f"{type(source).__name__}"
    )


def file_of(image: PillowImage.Image) -> bytes:
    """Return a PIL image as a file: a PNG, or a TIFF if PNG would change its samples."""
    content = BytesIO()
    try:
        if image.mode in ("L", "RGB"):
            image.save(content, "PNG", compress_level=1)
        else:
            image.save(content, "TIFF")
    except (OSError, ValueError) as exc:
        raise InvalidImage(f"The PIL image cannot be read: {exc}.", "picture") from exc
    return content.getvalue()


def as_8_bits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return an array as H×W or H×W×3 uint8, by the rules for files with such samples.

    Raises:
        InvalidImage: the array is no picture.
    """
    pixels = array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else array
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[:, :, :3]  # transparency is dropped, and the colour beneath it is kept
    is_picture = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)
    if not is_picture or pixels.dtype.kind not in "buif":
        raise InvalidImage(
            f"The array has the shape {array.shape} and the type {array.dtype}; it must be H×W, "
            "H×W×3 or H×W×4, of bool, integers or floats.",
            "picture",
        )
    if not pixels.size:
        raise InvalidImage("The array has no pixels.", "picture")
    if pixels.dtype == np.bool_:
        return pixels.astype(np.uint8) * np.uint8(255)
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    if pixels.ndim == 2:
        return eight_bit.stretch(pixels)
    try:
        return eight_bit.scale(pixels)
    except ValueError as exc:
        raise InvalidImage(f"The array is no picture: {exc}.", "picture") from exc


def whole_number(value: object, name: str) -> int:
    """Return a whole number from 0 as an int; NumPy's integers are taken too.

    Raises:
        InvalidField: it is no such number.
    """
    is_integer = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_integer or int(value) < 0:  # type: ignore[call-overload]
        raise InvalidField(f"{name} must be an integer from 0, not {value!r}.", name)
    return int(value)  # type: ignore[call-overload, no-any-return]


def _fetched(url: str) -> tuple[bytes, str]:
    import requests

    shown = url.split("?")[0]
    try:
        with requests.get(url, stream=True, timeout=FETCH_TIMEOUT_S) as answer:
            if not answer.ok:
                raise Unreachable(f"{shown} answers {answer.status_code} {answer.reason}.")
            parts, size = [], 0
            for part in answer.iter_content(2**20):
                size += len(part)
                if size > MAX_DOWNLOAD:
                    raise TooLarge(
                        f"{shown} has more than {MAX_DOWNLOAD} bytes, the limit.", "picture"
                    )
                parts.append(part)
    except requests.RequestException as exc:
        raise Unreachable(f"{shown} cannot be fetched: {type(exc).__name__}.") from exc
    return b"".join(parts), shown.rstrip("/").rpartition("/")[2]
