"""This module interprets the tags of a TIFF's page, and refuses the layouts that are not read.

Every refusal names the layout. It says what the user can do instead, or lists the tags' values.
`docs/pictures.md` has the table of layouts.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from . import eight_bit
from .tiff_directory import Directory, Unreadable
from .tiff_segments import CCITT, COMPRESSIONS, JPEG, NONE, REFUSED, WEBP

_KIND_OF_PAGE = 254
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_SAMPLES = 277
_PLANAR = 284
_PREDICTOR = 317
_SUB_DIRECTORIES = 330
_INK_SET = 332
_EXTRA_SAMPLES = 338
_SAMPLE_FORMAT = 339
_SUBSAMPLING = 530
_DEPTH = 32997
_NO_DATA = 42113

WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, MASK, CMYK, YCBCR, LAB = 0, 1, 2, 3, 4, 5, 6, 8
GREYS = (WHITE_IS_ZERO, BLACK_IS_ZERO, MASK)
_COLOURS = {RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, LAB: 3}
_NOT_READ = {
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "a colour filter array (a camera's raw picture)",
    32844: "LogL",
    32845: "LogLuv",
    34892: "a camera's linear raw picture",
    51177: "a depth map",
}

_MULTIPLIED, _ALPHA = 1, 2  # values of ExtraSamples: associated alpha, unassociated alpha

_MAX_SAMPLES = 64
"""The largest number of samples per pixel. More than four are read only as extra samples of RGB or
CMYK."""


class Layout:
    """The layout of one page: its samples, their kind and their compression.

    Args:
        tags: the page's directory.
    """

    def __init__(self, tags: Directory) -> None:
        self._tags = tags

    def check(self) -> None:
        """Raise Unreadable, with the name of the layout, if it is not read."""
        self._check_is_the_picture()
        self._check_readable()

    @cached_property
    def compression(self) -> int:
        """The value of the tag Compression."""
        return self._tags.integer(_COMPRESSION, NONE)

    @cached_property
    def photometric(self) -> int:
        """The photometric interpretation after decoding. The JPEG decoder converts YCbCr to RGB."""
        return RGB if self.is_ycbcr_jpeg else self._tags.integer(_PHOTOMETRIC, -1)

    @property
    def is_ycbcr_jpeg(self) -> bool:
        """Whether the samples are YCbCr, which the JPEG decoder converts to RGB."""
        return self.compression == JPEG and self._tags.integer(_PHOTOMETRIC, -1) == YCBCR

    @cached_property
    def samples(self) -> int:
        """The number of samples per pixel, extra samples included."""
        samples = self._tags.integer(_SAMPLES, 1)
        if not 1 <= samples <= _MAX_SAMPLES:
            raise Unreadable(
                f"TIFF with {samples} samples per pixel is not read" + self.description()
            )
        return samples

    @cached_property
    def separate(self) -> bool:
        """Whether each sample is stored in a separate plane."""
        return self.samples > 1 and self._tags.integer(_PLANAR, 1) == 2

    @cached_property
    def bits(self) -> int:
        """The number of bits of each sample."""
        bits = set((self._tags.integers(_BITS, 2**16) or (1,))[: self.samples])
        if len(bits) > 1:
            raise Unreadable(
                "TIFF whose samples have different numbers of bits is not read" + self.description()
            )
        return bits.pop()

    @cached_property
    def extras(self) -> tuple[int, ...]:
        """The values of ExtraSamples, one for each sample after those of the colour."""
        extras = self._tags.integers(_EXTRA_SAMPLES, 2**16) or ()
        return extras[: self.samples]

    @cached_property
    def channels(self) -> list[int]:
        """The indices of the samples that form the picture, in order."""
        if self.photometric not in GREYS:
            return list(range(_COLOURS[self.photometric]))
        first = self.samples - len(self.extras)
        return [
            index
            for index in range(self.samples)
            if index < first or self.extras[index - first] not in (_MULTIPLIED, _ALPHA)
        ]

    @cached_property
    def multiplied_by(self) -> int | None:
        """The index of the alpha sample that the colours are multiplied by, or None."""
        if _MULTIPLIED not in self.extras or self.photometric not in (*GREYS, RGB):
            return None
        return self.samples - len(self.extras) + self.extras.index(_MULTIPLIED)

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """The dtype of a decoded sample.

        Raises:
            Unreadable: samples of this format and these bits are not read.
        """
        formats = set((self._tags.integers(_SAMPLE_FORMAT, 2**16) or (1,))[: self.samples])
        bits, kind = self.bits, formats.pop() if len(formats) == 1 else 0
        if kind in (1, 4):
            if 1 <= bits <= 16:
                return np.dtype(np.uint8 if bits <= 8 else np.uint16)
            if bits in (32, 64):
                return np.dtype(f"u{bits // 8}")
        elif (kind == 2 and bits in (8, 16, 32, 64)) or (kind == 3 and bits in (16, 32, 64)):
            return np.dtype(f"{'i' if kind == 2 else 'f'}{bits // 8}")
        names = {0: "samples of several formats", 1: "unsigned integers", 2: "signed integers"}
        names |= {3: "floats", 4: "unsigned integers", 5: "complex numbers", 6: "complex numbers"}
        name = names.get(kind, "samples of an unknown format")
        raise Unreadable(f"TIFF with {name} with {bits} bits is not read" + self.description())

    @property
    def most(self) -> int:
        """The largest value of these unsigned integers."""
        return (1 << self.bits) - 1

    @cached_property
    def narrow(self) -> bool:
        """Whether the samples are unsigned and have at most 8 bits."""
        return self.dtype == np.uint8

    @cached_property
    def no_data(self) -> float | int | None:
        """The value of GDAL_NODATA, or None if no sample can have it."""
        return eight_bit.rounded_to(self.dtype, self._tags.text(_NO_DATA).replace(",", "."))

    def description(self) -> str:
        """Return the tags that describe the pixels, for the end of an error message."""
        tags = {
            "samples": self._tags.integer(_SAMPLES, 1),
            "bits": self._tags.integers(_BITS, 2**16),
            "sample format": self._tags.integers(_SAMPLE_FORMAT, 2**16),
            "photometric": self._tags.integer(_PHOTOMETRIC, -1),
            "planar": self._tags.integer(_PLANAR, 1),
            "compression": self._tags.integer(_COMPRESSION, NONE),
        }
        texts = [f"{name} {value!s:.40}" for name, value in tags.items() if value is not None]
        return " (" + ", ".join(texts) + ")"

    def _check_is_the_picture(self) -> None:
        reduced = self._tags.integer(_KIND_OF_PAGE, 0) & 1
        if reduced and _SUB_DIRECTORIES in self._tags:
            raise Unreadable(
                "this page of the TIFF is only a preview of a picture in a sub-directory, as "
                "in a camera's raw file: save that picture as a separate TIFF or PNG"
            )
        if self._tags.integer(_DEPTH, 1) > 1:
            raise Unreadable("TIFF with volumes (ImageDepth) is not read: save its planes as pages")

    def _check_readable(self) -> None:
        compression, photometric = self.compression, self.photometric
        if compression not in COMPRESSIONS:
            name = REFUSED.get(compression, "an unknown method")
            raise Unreadable(
                f"TIFF compressed by {name} is not read; use one of these: "
                + ", ".join(dict.fromkeys(COMPRESSIONS.values()))
                + self.description()
            )
        if photometric < 0:
            raise Unreadable(
                "the TIFF does not declare what its samples mean (PhotometricInterpretation)"
                + self.description()
            )
        if photometric not in GREYS and photometric not in _COLOURS:
            name = _NOT_READ.get(photometric, "an unknown photometric interpretation")
            raise Unreadable(f"TIFF with {name} is not read" + self.description())
        self._check_compression_fits()
        self._check_channels()
        self._check_colours()

    def _check_compression_fits(self) -> None:
        """Raise Unreadable if the compression does not fit the samples."""
        compression, samples = self.compression, 1 if self.separate else self.samples
        fits = {
            JPEG: samples in (1, 3, 4) and self.bits in (8, 12),
            WEBP: samples in (3, 4) and self.bits == 8,
        }
        fits |= dict.fromkeys(CCITT, samples == 1 and self.bits == 1)
        if not fits.get(compression, True) or (
            compression == JPEG and samples == 4 and self.photometric != CMYK
        ):
            raise Unreadable(
                f"TIFF with such samples, compressed by {COMPRESSIONS[compression]}, is not read"
                + self.description()
            )
        predictor = self._tags.integer(_PREDICTOR, 1)
        if predictor not in (1, 2, 3) or (predictor == 3 and self.dtype.kind != "f"):
            raise Unreadable(f"TIFF with predictor {predictor} is not read" + self.description())

    def _check_channels(self) -> None:
        if self.photometric in GREYS:
            channels = len(self.channels)
            if not 1 <= channels <= 3:
                raise Unreadable(
                    f"TIFF with {channels} channels that are neither RGB nor CMYK is not read: "
                    "save one of them, or up to three, which become red, green and blue"
                    + self.description()
                )
        elif self.samples < len(self.channels):
            raise Unreadable("the TIFF is damaged: it has too few samples" + self.description())

    def _check_colours(self) -> None:
        photometric, unsigned = self.photometric, self.dtype.kind == "u"
        if photometric == CMYK:
            if self._tags.integer(_INK_SET, 1) != 1:
                raise Unreadable("TIFF with other inks than CMYK is not read" + self.description())
            fits = unsigned and self.bits <= 16
        elif photometric in (YCBCR, LAB):
            fits = unsigned and self.bits == 8
        elif photometric == PALETTE:
            fits = unsigned and self.bits <= 16
        else:
            fits = True
        if not fits:
            raise Unreadable("TIFF with such samples is not read" + self.description())
        # A missing YCbCrSubSampling means (2, 2).
        if photometric == YCBCR and self._tags.integers(_SUBSAMPLING) != (1, 1):
            raise Unreadable(
                "TIFF in YCbCr is read only without subsampling, or compressed by JPEG"
                + self.description()
            )
