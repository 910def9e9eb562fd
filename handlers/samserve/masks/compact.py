"""Masks that take little memory until their pixels are needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from samserve.boxes import Box

if TYPE_CHECKING:
    from .full_size import FullSize, Logits


class Work(NamedTuple):
    """How many pixels of a mask have to be made: those of its box, and those of its outline.

    Each of the latter takes much longer. Both numbers may be too large, and neither is too small.
    """

    in_box: int
    along_outline: int


class CompactMask(Protocol):
    """A mask of an image that takes little memory until its pixels are needed.

    Attributes:
        box: the smallest box around the mask's pixels; `boxes.EMPTY` if there are none.
        area: the number of the mask's pixels.
        stability_score: IoU of the masks cut above and below the threshold, in single precision
            like the reference's. It is NaN if both of these masks are empty.
        work: how many pixels `pixels` has to make.
    """

    @property
    def box(self) -> Box: ...

    @property
    def area(self) -> int: ...

    @property
    def stability_score(self) -> float | np.float32: ...

    @property
    def work(self) -> Work: ...

    def pixels(self) -> NDArray[np.bool_]:
        """Return the mask's pixels within its box, h×w bool."""
        ...


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A `CompactMask` that keeps one bit for each pixel of its box."""

    box: Box
    area: int
    stability_score: float
    _bits: NDArray[np.uint8]

    @classmethod
    def of(cls, full: NDArray[np.bool_], stability_score: float) -> PackedMask:
        """Pack a mask of the whole image, H×W bool."""
        left, top, width, height = cv2.boundingRect(full.view(np.uint8))
        box = Box.at((left, top), (height, width))
        inside = full[top : top + height, left : left + width]
        area = int(np.count_nonzero(inside))
        bits = np.packbits(inside, axis=1)
        return cls(box, area, stability_score, bits)

    @property
    def work(self) -> Work:
        return Work(self.box.width * self.box.height, 0)

    def pixels(self) -> NDArray[np.bool_]:
        return np.unpackbits(self._bits, axis=1, count=self.box.width).view(np.bool_)


@dataclass(frozen=True, eq=False)
class CellMask:
    """A `CompactMask` that keeps which cells belong to the object, and the pixels of the others."""

    box: Box
    area: int
    stability_score: np.float32
    _image: FullSize
    _inside: NDArray[np.uint8]  # packed bits: cells whose pixels all belong to the object
    _rows: NDArray[np.int16]  # K, the rows of the cells along the outline
    _columns: NDArray[np.int16]  # K
    _outline: NDArray[np.uint8]  # h×w×K pixels of these cells, packed

    @property
    def work(self) -> Work:
        return Work(self.box.width * self.box.height, self._image.pixels_of(len(self._rows)))

    def pixels(self) -> NDArray[np.bool_]:
        (left, top), (height, width) = self.box.origin, self.box.size
        rows, columns = self._image.rows, self._image.columns
        shape = (len(rows.start), len(columns.start))
        inside = np.unpackbits(self._inside, count=shape[0] * shape[1]).reshape(shape)
        cells = inside.take(rows.cell[top : top + height], axis=0)
        mask: NDArray[np.bool_] = cells.take(columns.cell[left : left + width], axis=1).view(bool)
        block = (rows.pixels, columns.pixels, len(self._rows))
        outline = np.unpackbits(self._outline, count=math.prod(block)).reshape(block)
        for dy in range(
            rows.pixels
        ):  # one row of pixels at a time: all indices would take 24 bytes a pixel
            dx, k = np.nonzero(outline[dy])
            y = rows.start[self._rows[k]] + dy - top
            x = columns.start[self._columns[k]] + dx - left
            mask[y, x] = True
        return mask


@dataclass(frozen=True, eq=False)
class DeferredMask:
    """A `CompactMask` that keeps the logits. Whoever reads more than `work` waits for the mask."""

    work: Work
    _image: FullSize
    _low_res_mask: Logits
    _offset: float

    @cached_property
    def _made(self) -> CellMask:
        return self._image.computed(self._low_res_mask, self._offset)

    @property
    def box(self) -> Box:
        return self._made.box

    @property
    def area(self) -> int:
        return self._made.area

    @property
    def stability_score(self) -> np.float32:
        return self._made.stability_score

    def pixels(self) -> NDArray[np.bool_]:
        return self._made.pixels()
