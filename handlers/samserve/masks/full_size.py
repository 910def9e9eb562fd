"""This module brings the network's 256×256 logits to the size of the image, and scores stability.

The masks equal the reference's. SAM 1 has two bilinear steps, 256 to 1024 to the size of the image
(`Sam.postprocess_masks`); SAM 2 has one. Then comes the threshold.

Why it is fast: together the steps make each pixel's logit a weighted mean of 3×3 of the 256×256
logits (of 2×2, if there is one step). Pixels with the same 3×3 form a *cell*. If all nine logits
are above a threshold, so is every pixel of the cell; if none is, no pixel is. Only the remaining
cells, those along the outline, are computed pixel by pixel.

The module does not choose masks: `automask` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from samserve.boxes import Box
from samserve.network.encoder import Embedding
from samserve.network.families import NETWORK_SIDE

from .compact import CellMask, DeferredMask, Work

MASK_THRESHOLD = 0.0
"""A pixel belongs to the object if its logit is above this (`Sam.mask_threshold`)."""

LOW_RES_SIDE = 256
"""Width and height of the network's output in logits; it covers the whole input."""

Logits = NDArray[np.float32]

DEFERRED_PIXELS = 2**18
"""A mask whose outline takes more pixels is computed only when it is needed."""

_PIXELS_AT_ONCE = 2**18  # so many float32 logits fit into the processor's cache
_WINDOW = np.ones((3, 3), np.uint8)


class FullSize:
    """A FullSize brings the masks of one image to the image's size.

    Args:
        embedding: the image's embedding, which knows its sizes.

    Attributes:
        rows, columns: the cells along each side of the image, and their pixels.
    """

    def __init__(self, embedding: Embedding) -> None:
        (in_h, in_w), (height, width) = embedding.input_size, embedding.original_size
        if embedding.family.two_steps:
            self.rows, self.columns = axis(in_h, height), axis(in_w, width)
        else:
            self.rows, self.columns = direct_axis(height), direct_axis(width)
        self._areas = np.outer(self.rows.count, self.columns.count)
        self._has_pixels = self._areas > 0  # an image below 256 pixels leaves many cells empty

    def mask(self, low_res_mask: Logits, offset: float = 0) -> CellMask | DeferredMask:
        """Return the mask of these logits. If it takes much work, it is computed later.

        Noise has an outline everywhere, and then each pixel of the picture has to be computed. So
        the caller can read first how much `work` that is.

        Args:
            low_res_mask: h×w logits of the network's input frame, from its top left: all 256×256,
                or as many as cover the image (`Masks.low_res_masks`).
            offset: distance from the threshold of the two cuts whose IoU is the stability score.
        """
        extremes = self._extremes(low_res_mask)
        along_outline = self.pixels_of(
            int(np.count_nonzero(self._on_outline(*extremes[1:], offset)))
        )
        if along_outline > DEFERRED_PIXELS:
            has_some = (extremes[2] > MASK_THRESHOLD - offset) & self._has_pixels
            in_box = self.rows.span(_any(has_some, 1)) * self.columns.span(_any(has_some, 0))
            return DeferredMask(Work(in_box, along_outline), self, low_res_mask, offset)
        return self._whole(self._scored(*extremes, offset))

    def computed(self, low_res_mask: Logits, offset: float) -> CellMask:
        """Like `mask`, but computed now, whatever work that is."""
        return self._whole(self._scored(*self._extremes(low_res_mask), offset))

    def pixels_of(self, cells: int) -> int:
        """Return the number of pixels that so many cells have at most."""
        return cells * self.rows.pixels * self.columns.pixels

    def stable(self, low_res_mask: Logits, offset: float, threshold: float) -> CellMask | None:
        """Like `mask`, but None if the stability score is below `threshold`.

        An empty mask has no score, so it gives None.
        """
        cells, smallest, largest = self._extremes(low_res_mask)
        # Whole cells bound the score from above, which rules out most unstable masks cheaply.
        intersection = self._count(largest > MASK_THRESHOLD + offset)
        union = self._count(smallest > MASK_THRESHOLD - offset)
        if union and intersection / union < threshold:
            return None
        scored = self._scored(cells, smallest, largest, offset)
        return self._whole(scored) if scored.stability_score >= threshold else None

    def _extremes(self, low_res_mask: Logits) -> tuple[Logits, Logits, Logits]:
        """Return the logits with a margin, and each cell's smallest and largest logit.

        Cell (i, j) reads the nine logits [i : i + 3, j : j + 3].
        """
        rows, columns = len(self.rows.start), len(self.columns.start)
        # At an edge the reference repeats the outermost logit, too.
        read = low_res_mask[: rows + 1, : columns + 1]
        logits = cv2.copyMakeBorder(read, 1, 2, 1, 2, cv2.BORDER_REPLICATE)
        smallest, largest = cv2.erode(logits, _WINDOW), cv2.dilate(logits, _WINDOW)
        inner = np.s_[1 : rows + 1, 1 : columns + 1]
        return _single(logits), _single(smallest[inner]), _single(largest[inner])

    def _count(self, cells: NDArray[np.bool_]) -> int:
        """Return the number of pixels of these cells."""
        # Not a dot product: BLAS starts threads, which would compete with the decoder's.
        return int((self._areas * cells).sum())

    def _on_outline(self, smallest: Logits, largest: Logits, offset: float) -> NDArray[np.bool_]:
        """Return the cells whose pixels have to be computed one by one."""
        above, below = MASK_THRESHOLD + offset, MASK_THRESHOLD - offset
        return np.asarray((smallest <= above) & (largest > below) & self._has_pixels)

    def _scored(self, logits: Logits, smallest: Logits, largest: Logits, offset: float) -> _Scored:
        above, below = MASK_THRESHOLD + offset, MASK_THRESHOLD - offset
        inside = (smallest > above) & self._has_pixels
        outline = self._on_outline(smallest, largest, offset)
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
            box=Box(x0, y0, x1, y1),
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
        """Return the logits of the pixels of K cells, h×w×K; NaN where a cell has fewer pixels.

        PyTorch does it, because its `addcmul_` passes through memory once; NumPy would need four
        passes.
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
    """The parts of a mask, from which `_whole` makes a `CellMask`."""

    inside: NDArray[np.bool_]  # cells whose pixels all belong to the object
    rows: NDArray[np.intp]  # K, the rows of the cells along the outline
    columns: NDArray[np.intp]  # K
    pixels: NDArray[np.bool_]  # h×w×K, which pixels of these cells belong to the object
    area: int  # the number of pixels of `inside`
    stability_score: np.float32


@dataclass(frozen=True, eq=False)
class Axis:
    """An Axis says how the pixels along one side of an image read the 256 logits.

    Attributes:
        cell: for each pixel, the number of its cell.
        start, count: for each cell, its first pixel and the number of its pixels.
        weights: 3×m×cells, the weights of a cell's three logits for each of its up to m pixels;
            NaN where the cell has fewer pixels.
    """

    cell: NDArray[np.intp]
    start: NDArray[np.intp]
    count: NDArray[np.intp]
    weights: NDArray[np.float32]

    @property
    def pixels(self) -> int:
        """The largest number of pixels that a cell has."""
        return int(self.weights.shape[1])

    def span(self, cells: NDArray[np.bool_]) -> int:
        """Return the number of pixels from the first to the last of these cells."""
        first, last = np.flatnonzero(cells)[[0, -1]]
        return int(self.start[last] + self.count[last] - self.start[first])

    def extent(
        self, inside: NDArray[np.bool_], outline: NDArray[np.bool_], cells: NDArray[np.intp]
    ) -> tuple[int, int]:
        """Return a mask's first pixel and the one after its last; (0, 0) if it has none.

        Args:
            inside: for each cell, whether it holds pixels of the mask wholly.
            outline: m×K, which pixels of K further cells belong to the mask.
            cells: K, the numbers of these cells.
        """
        whole = np.flatnonzero(inside)
        step, k = np.nonzero(outline)
        further = self.start[cells[k]] + step
        certain = [self.start[whole], self.start[whole] + self.count[whole] - 1]
        pixels = np.concatenate([*certain, further])
        return (int(pixels.min()), int(pixels.max()) + 1) if len(pixels) else (0, 0)


@lru_cache(maxsize=64)
def axis(input_size: int, size: int) -> Axis:
    """Return the axis of a side of `size` pixels, which the encoder resized to `input_size`."""
    lower, upper, share = _interpolated_from(input_size, size)
    # Starts at -1: at the edge the outermost logit counts twice.
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

    return _axis_of(first, taken)


@lru_cache(maxsize=64)
def direct_axis(size: int) -> Axis:
    """Return the axis of a side of `size` pixels that read the 256 logits in one step."""
    lower, upper, share = _interpolated_from(LOW_RES_SIDE, size)
    pixel = np.arange(size)
    taken = np.zeros((3, size), np.float32)
    taken[0] = 1 - share
    taken[upper - lower, pixel] += share
    return _axis_of(lower, taken)


def _axis_of(first: NDArray[np.intp], taken: NDArray[np.float32]) -> Axis:
    """Return the axis whose pixels read three logits each.

    Args:
        first: the first of the logits that each pixel reads; -1 for the edge, which is repeated.
        taken: 3×size, their weights.
    """
    size = len(first)
    pixel = np.arange(size)
    cell = first + 1
    cells = np.arange(cell[-1] + 1)
    start, count = np.searchsorted(cell, cells), np.bincount(cell)
    weights = np.full((3, count.max(), len(cells)), np.nan, np.float32)
    weights[:, pixel - start[cell], cell] = taken
    return Axis(cell, start, count, weights)


def _interpolated_from(
    n_read: int, n_made: int
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Return the two of `n_read` pixels that each of `n_made` reads, and the second one's share."""
    position = np.maximum(_positions(n_read, n_made), 0)
    lower = np.minimum(position.astype(np.intp), n_read - 1)
    return lower, np.minimum(lower + 1, n_read - 1), position - lower


def _positions(n_read: int, n_made: int) -> NDArray[np.float32]:
    """Return the position, among `n_read` pixels, that each of `n_made` pixels is interpolated at.

    It is computed in single precision, as PyTorch does.
    """
    half, scale = np.float32(0.5), np.float32(n_read) / np.float32(n_made)
    return _single((np.arange(n_made, dtype=np.float32) + half) * scale - half)


def _any(array: NDArray[np.bool_], axis: int) -> NDArray[np.bool_]:
    return np.asarray(array.any(axis=axis))


def _single(array: Any) -> Logits:
    return np.asarray(array, np.float32)
