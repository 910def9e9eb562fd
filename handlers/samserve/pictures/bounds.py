"""This module compares the size and the page count that a file declares with what is allowed."""

from __future__ import annotations

from samserve.errors import InvalidField, InvalidImage, TooLarge

MAX_SIDE = 10**6
"""The largest width and height of a picture in pixels.

Pillow allocates memory for each row besides the pixels. A picture that is one pixel wide takes 20
bytes for each pixel.
"""


def check_size(size: tuple[int, int], max_pixels: int, field: str) -> None:
    """Raise an error unless a picture of this size is decoded.

    Args:
        size: (width, height) in pixels.
        max_pixels: the largest number of pixels, width times height, that is decoded.
        field: the name of the picture's field in the request, for errors.

    Raises:
        InvalidImage: the picture has no pixels.
        TooLarge: the picture has more than `max_pixels`, or more than `MAX_SIDE` along a side.
    """
    width, height = size
    if width < 1 or height < 1:
        raise InvalidImage(f"the image is {width} x {height} pixels: it is empty", field)
    if width * height > max_pixels:
        raise TooLarge(
            f"the image is {width} x {height} pixels; the limit is {max_pixels} pixels", field
        )
    if max(width, height) > MAX_SIDE:
        raise TooLarge(
            f"the image is {width} x {height} pixels; the limit is {MAX_SIDE} pixels along a side",
            field,
        )


def check_page(page: int, pages: int) -> None:
    """Raise InvalidField unless a file with this number of pages has this page, from 0."""
    if page >= pages:
        has = "1 page, page 0" if pages == 1 else f"{pages} pages, 0 to {pages - 1}"
        raise InvalidField(f"page {page} does not exist: the picture has {has}.", "page")
