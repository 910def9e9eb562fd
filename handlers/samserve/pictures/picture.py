"""This module has `Picture`: an image as a request carries it, decoded when it is needed."""

from __future__ import annotations

import time
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from samserve.errors import UnknownImage

from .base64_text import decode_base64
from .decoding import Decode, Decoded, decode_page
from .digests import digest_of_sent, is_reference


class Picture:
    """An image as a request carries it. It is decoded when its pixels are first read.

    Args:
        sent: base64 of an image file, the file itself, or the digest of a picture that was sent
            before (`digests.py`).
        max_pixels: the largest number of pixels, width times height, that is decoded.
        field: the name of the picture's field in the request, for errors.
        page: the page of the file, from 0.
        decode: decodes the file; the default does it in this process, without limits of time.
    """

    def __init__(
        self,
        sent: str | bytes,
        max_pixels: int,
        field: str = "b64img",
        page: int = 0,
        decode: Decode = decode_page,
    ) -> None:
        self._sent = sent
        self.max_pixels = max_pixels
        self._field = field
        self._decode = decode
        self.page = page
        self.decoding_s: float | None = None
        """Seconds that decoding took; None if the picture was not decoded."""

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the text or file. Pictures with equal digests and pages have equal pixels."""
        return digest_of_sent(self._sent)

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """H×W×3 uint8 RGB.

        Raises:
            UnknownImage: only a digest was sent, which cannot be decoded.
            InvalidField: the text is not base64, or the file has no such page.
            TooLarge: the picture has more than `max_pixels`.
            InvalidImage: the file is no image of a kind that is read.
        """
        return self._decoded.pixels

    @property
    def pages(self) -> int:
        """The number of pages in the file. Raises the same errors as `pixels`."""
        return self._decoded.pages

    @cached_property
    def _decoded(self) -> Decoded:
        data = self._sent
        start = time.perf_counter()
        if isinstance(data, str):
            if is_reference(data):
                raise UnknownImage("This picture is not remembered: send it in full.", self._field)
            data = decode_base64(data, self._field)
        decoded = self._decode(data, self.max_pixels, self._field, self.page)
        self.decoding_s = time.perf_counter() - start
        return decoded
