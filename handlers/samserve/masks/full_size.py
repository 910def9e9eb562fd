"""Masks at the image's own size from the network's 256×256 logits, and how stable they are.

The mask is the reference's: two bilinear steps (`Sam.postprocess_masks`), 256 -> 1024 -> the
image, then the threshold. Together they make of each pixel's logit a weighted mean of 3×3 of
the 256×256. The pixels with the same 3×3 are a *cell*, and where these nine are all above a
threshold, so is the whole cell; where none is, none of it. Only the cells that a threshold
runs through, those along the outline, are computed pixel by pixel.

Decides nothing: which masks are worth it is `automask`'s.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from samserve.network.encoder import Embedding

MASK_THRESHOLD = 0.0
"""A pixel is of the object where its logit is above this (`Sam.mask_threshold`)."""

NETWORK_SIDE = 1024
"""Pixels of the network's input, both ways."""

LOW_RES_SIDE = 256
"""Logits that cover it, both ways."""

Logits = NDArray[np.float32]

_PIXELS_AT_ONCE = 2**18  # of cells along an outline: their logits fit the processor's cache
_WINDOW = np.ones((3, 3), np.uint8)


class FoundMask(Protocol):
    """A mask of an image, small for as long as nobody asks for its pixels.

    Attributes:
        origin: (x0, y0), the image pixel at the top left of the box around the mask's pixels.
        size: (height, width) of that box, zeros if the mask is empty.
        area: pixels of the mask.
        stability_score: IoU of the masks cut above and below the threshold, single precision
            as the reference's; NaN where both are empty.
    """

    @property
    def origin(self) -> tuple[int, int]: ...

    @property
    def size(self) -> tuple[int, int]: ...

    @property
    def area(self) -> int: ...

    @property
    def stability_score(self) -> float | np.float32: ...

    def pixels(self) -> NDArray[np.bool_]:
        """h×w bool, the mask's pixels within its box."""
        ...


@dataclass(frozen=True, eq=False)
class PackedMask:
    """A `FoundMask` that is kept as its bits."""

    origin: tuple[int, int]
    size: tuple[int, int]
    area: int
    stability_score: float
    _bits: NDArray[np.uint8]

    @classmethod
    def of(cls, full: NDArray[np.bool_], stability_score: float) -> PackedMask:
        """That of a mask of the whole image, H×W."""
        left, top, width, height = cv2.boundingRect(full.view(np.uint8))
        inside = full[top : top + height, left : left + width]
        area = int(np.count_nonzero(inside))
        bits = np.packbits(inside, axis=1)
        return cls((left, top), (height, width), area, stability_score, bits)

    def pixels(self) -> NDArray[np.bool_]:
        return np.unpackbits(self._bits, axis=1, count=self.size[1]).view(np.bool_)


@dataclass(frozen=True, eq=False)
class CellMask:
    """A `FoundMask` that is kept as its cells."""

    origin: tuple[int, int]
    size: tuple[int, int]
    area: int
    stability_score: np.float32
    _image: FullSize
    _inside: NDArray[np.uint8]  # cells that are of the object whole, packed
    _rows: NDArray[np.int16]  # K, those of the other cells
    _columns: NDArray[np.int16]  # K
    _outline: NDArray[np.uint8]  # h×w×K pixels of these cells, packed

    def pixels(self) -> NDArray[np.bool_]:
        (left, top), (height, width) = self.origin, self.size
        rows, columns = self._image.rows, self._image.columns
        shape = (len(rows.start), len(columns.start))
        inside = np.unpackbits(self._inside, count=shape[0] * shape[1]).reshape(shape)
        cells = inside.take(rows.cell[top : top + height], axis=0)
        mask: NDArray[np.bool_] = cells.take(columns.cell[left : left + width], axis=1).view(bool)
        block = (rows.pixels, columns.pixels, len(self._rows))
        outline = np.unpackbits(self._outline, count=math.prod(block)).reshape(block)
        for dy in range(rows.pixels):  # together they would take 24 bytes a pixel
            dx, k = np.nonzero(outline[dy])
            y = rows.start[self._rows[k]] + dy - top
            x = columns.start[self._columns[k]] + dx - left
            mask[y, x] = True
        return mask


class FullSize:
    """Brings the masks of one image to its size.

    Args:
        embedding: of that image.

    Attributes:
        rows, columns: of cells, and where their pixels are.
    """

    def __init__(self, embedding: Embedding) -> None:
        (in_h, in_w), (height, width) = embedding.input_size, embedding.original_size
        self.rows, self.columns = axis(in_h, height), axis(in_w, width)
        self._areas = np.outer(self.rows.count, self.columns.count)
        self._has_pixels = self._areas > 0  # where the image is smaller than 256, many have none

    def mask(self, low_res_mask: Logits, offset: float = 0) -> CellMask:
        """The mask.

        Args:
            low_res_mask: h×w logits of the input frame, from its top left: all 256×256, or as
                many as the image needs (`Masks.low_res_masks`).
            offset: how far from the threshold the masks are cut whose IoU is the stability.
        """
        return self._whole(self._scored(*self._extremes(low_res_mask), offset))

    def stable(self, low_res_mask: Logits, offset: float, threshold: float) -> CellMask | None:
        """The same if the stability score is `threshold` or more; that of nothing is not."""
        cells, smallest, largest = self._extremes(low_res_mask)
        # Many that are not stable show it already in their cells.
        intersection = self._count(largest > MASK_THRESHOLD + offset)
        union = self._count(smallest > MASK_THRESHOLD - offset)
        if union and intersection / union < threshold:
            return None
        scored = self._scored(cells, smallest, largest, offset)
        return self._whole(scored) if scored.stability_score >= threshold else None

    def _extremes(self, low_res_mask: Logits) -> tuple[Logits, Logits, Logits]:
        """Logits with a margin, from which cell (i, j) reads [i : i + 3, j : j + 3]; and the
        smallest and the largest of each cell's nine."""
        rows, columns = len(self.rows.start), len(self.columns.start)
        # The reference, too, repeats what is at the edge.
        read = low_res_mask[: rows + 1, : columns + 1]
        logits = cv2.copyMakeBorder(read, 1, 2, 1, 2, cv2.BORDER_REPLICATE)
        smallest, largest = cv2.erode(logits, _WINDOW), cv2.dilate(logits, _WINDOW)
        inner = np.s_[1 : rows + 1, 1 : columns + 1]
        return _single(logits), _single(smallest[inner]), _single(largest[inner])

    def _count(self, cells: NDArray[np.bool_]) -> int:
        """How many pixels these cells have."""
        # Not by a dot product: NumPy's own threads would then wait for each other's.
        return int((self._areas * cells).sum())

    def _scored(self, logits: Logits, smallest: Logits, largest: Logits, offset: float) -> _Scored:
        above, below = MASK_THRESHOLD + offset, MASK_THRESHOLD - offset
        inside = (smallest > above) & self._has_pixels
        outline = (smallest <= above) & (largest > below) & self._has_pixels
        rows, columns = np.divmod(np.flatnonzero(outline), outline.shape[1])
        pixels = np.empty((self.rows.pixels, self.columns.pixels, len(rows)), np.bool_)
        area = intersection = union = self._count(inside)
        at_once = max(1, _PIXELS_AT_ONCE // (self.rows.pixels * self.columns.pixels))
        for first in range(0, len(rows), at_once):
            some = slice(first, first + at_once)
            of_pixels = self._interpolated(logits, rows[some], columns[some])
            intersection += int(np.count_nonzero(of_pixels > above))
            union += int(np.count_nonzero(of_pixels > below))
            np.greater(of_pixels, MASK_THRESHOLD, out=pixels[:, :, some])
        score = np.float32(intersection) / np.float32(union) if union else np.float32(math.nan)
        return _Scored(inside, rows, columns, pixels, area, score)

    def _whole(self, scored: _Scored) -> CellMask:
        inside, rows, columns, pixels, area, stability_score = scored
        y0, y1 = self.rows.extent(_any(inside, 1), _any(pixels, 1), rows)
        x0, x1 = self.columns.extent(_any(inside, 0), _any(pixels, 0), columns)
        return CellMask(
            origin=(x0, y0),
            size=(y1 - y0, x1 - x0),
            area=area + int(np.count_nonzero(pixels)),
            stability_score=stability_score,
            _image=self,
            _inside=np.packbits(inside),
            _rows=rows.astype(np.int16),
            _columns=columns.astype(np.int16),
            _outline=np.packbits(pixels),
        )

    def _interpolated(
        self, logits: Logits, rows: NDArray[np.intp], columns: NDArray[np.intp]
    ) -> Logits:
        """h×w×K logits of the pixels of K cells, NaN where a cell has fewer than h×w.

        By PyTorch, whose `addcmul_` goes through memory once where NumPy would four times.
        """
        place = rows * logits.shape[1] + columns
        flat = logits.ravel()

        def read(dy: int, dx: int) -> torch.Tensor:
            return torch.from_numpy(flat[place + (dy * logits.shape[1] + dx)])

        across = torch.from_numpy(self.columns.weights[..., columns])  # 3×w×K
        down = torch.from_numpy(self.rows.weights[..., rows])  # 3×h×K
        of_pixels: torch.Tensor | None = None
        for dx in range(3):
            column = read(0, dx) * down[0]
            column.addcmul_(read(1, dx), down[1]).addcmul_(read(2, dx), down[2])
            if of_pixels is None:
                of_pixels = column[:, None] * across[dx]
            else:
                of_pixels.addcmul_(column[:, None], across[dx])
        return np.asarray(of_pixels)


class _Scored(NamedTuple):
    """What is known of a mask once its stability is."""

    inside: NDArray[np.bool_]  # cells that are of the object whole
    rows: NDArray[np.intp]  # K, those of the cells along the outline
    columns: NDArray[np.intp]  # K
    pixels: NDArray[np.bool_]  # h×w×K, whether these cells' pixels are of the object
    area: int  # of `inside`
    stability_score: np.float32


@dataclass(frozen=True, eq=False)
class Axis:
    """How the pixels along one side of an image read the 256 logits.

    Attributes:
        cell: for each pixel, its cell's number.
        start, count: for each cell, its first pixel and how many it has.
        weights: 3×m×cells, what each of a cell's up to m pixels takes of its three logits;
            NaN where it has fewer.
    """

    cell: NDArray[np.intp]
    start: NDArray[np.intp]
    count: NDArray[np.intp]
    weights: NDArray[np.float32]

    @property
    def pixels(self) -> int:
        """The most that a cell has."""
        return int(self.weights.shape[1])

    def extent(
        self, inside: NDArray[np.bool_], outline: NDArray[np.bool_], cells: NDArray[np.intp]
    ) -> tuple[int, int]:
        """From the first pixel of a mask to after the last; (0, 0) if there is none.

        Args:
            inside: for each cell, whether some of its pixels are of the mask for certain.
            outline: m×K, pixels of further cells.
            cells: K, the numbers of these.
        """
        whole = np.flatnonzero(inside)
        step, k = np.nonzero(outline)
        further = self.start[cells[k]] + step
        certain = [self.start[whole], self.start[whole] + self.count[whole] - 1]
        found = np.concatenate([*certain, further])
        return (int(found.min()), int(found.max()) + 1) if len(found) else (0, 0)


@lru_cache(maxsize=64)
def axis(input_size: int, size: int) -> Axis:
    """The axis of a side of `size` pixels, which were `input_size` pixels to the network."""
    position = np.maximum(_positions(input_size, size), 0)
    lower = np.minimum(position.astype(np.intp), input_size - 1)
    upper = np.minimum(lower + 1, input_size - 1)
    share = position - lower
    # From -1, for at the edge the outermost logit counts twice.
    in_low_res = _positions(LOW_RES_SIDE, NETWORK_SIDE)
    neighbour = np.floor(in_low_res).astype(np.intp)
    neighbour_share = in_low_res - neighbour

    pixel = np.arange(size)
    first = neighbour[lower]
    taken = np.zeros((3, size), np.float32)
    for read, weight in ((lower, 1 - share), (upper, share)):
        step = neighbour[read] - first
        taken[step, pixel] += weight * (1 - neighbour_share[read])
        taken[step + 1, pixel] += weight * neighbour_share[read]

    cell = first + 1
    cells = np.arange(cell[-1] + 1)
    start, count = np.searchsorted(cell, cells), np.bincount(cell)
    weights = np.full((3, count.max(), len(cells)), np.nan, np.float32)
    weights[:, pixel - start[cell], cell] = taken
    return Axis(cell, start, count, weights)


def _positions(n_read: int, n_made: int) -> NDArray[np.float32]:
    """Where each of n pixels reads among those it is interpolated from.

    In single precision, as PyTorch computes them.
    """
    half, scale = np.float32(0.5), np.float32(n_read) / np.float32(n_made)
    return _single((np.arange(n_made, dtype=np.float32) + half) * scale - half)


def _any(array: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    return np.asarray(array.any(axis=axis))


def _single(array: Any) -> Logits:
    return np.asarray(array, np.float32)
