"""Pictures much larger than the network's input: tile by tile, and what a seam cuts made one again.

Each tile is a picture of its own to the network, at its native scale, and overlaps its neighbours.
A mask that ends at a tile's inner edge is a *fragment*, any other one is *whole*. Then

1. of whole masks that several tiles saw, the best stays (by box, as segment-anything chooses among
   its crops);
2. a fragment that lies within a whole mask goes: the tile that saw the whole saw this, too;
3. fragments of two tiles are one object where they agree in what both tiles see: IoU of at least
   one half there. Fragments so connected are joined, over any number of seams;
4. of what is left, objects whose masks are nearly the same are one. Boxes alone would not tell: a
   stray pixel far away makes another box of the same object.

So an object no larger than the overlap is whole somewhere, and larger ones are joined. micro-sam
joins what touches along a seam by the overlap of labels, which allows one label a pixel; cellpose
averages the network's flow fields before there are objects. SAM's masks may lie within each other,
so each pair is judged by itself.

Where it fails: an object that the network outlines differently in two tiles, by more than the half,
stays in pieces. Two objects that look like one in the strip that both tiles see become one. What
spans more than `MAX_TILES` tiles (background, mostly) is left out, so that memory is bounded by the
tile and not by the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from samserve.answers.features import AutoMask

FRAGMENT_MARGIN = 1 / 128
"""Share of a tile's long side within which, from an inner edge, a mask counts as cut: two cells of
the network's masks, which have 256 on that side."""

SAME = 0.5
"""IoU, in what two tiles both see, from which two fragments are one object."""

WITHIN = 0.8
"""Part of a fragment that a whole mask must cover to make it superfluous."""

MAX_TILES = 4
"""Side of the largest object, in tiles."""

Window = tuple[int, int, int, int]
"""x0, y0, x1, y1 in pixels of the picture, the ends not included."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A mask that a tile gave.

    Attributes:
        window: of the mask's pixels, in the picture.
        bits: its rows within the window, packed.
        tile: the tile's own window.
        predicted_iou, stability_score: the mask's.
        point: the (x, y) that prompted it, in the picture.
    """

    window: Window
    bits: NDArray[np.uint8]
    tile: Window
    area: int
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]

    @property
    def box(self) -> tuple[int, int, int, int]:
        """XYXY, both ends included."""
        x0, y0, x1, y1 = self.window
        return x0, y0, x1 - 1, y1 - 1

    def within(self, window: Window) -> NDArray[np.bool_]:
        """The mask's pixels in a window that lies within its own."""
        x0, y0, x1, y1 = window
        left, top, right, _ = self.window
        rows = self.bits[y0 - top : y1 - top]
        mask = np.unpackbits(rows, axis=1, count=right - left).view(np.bool_)
        return mask[:, x0 - left : x1 - left]


def tiles(width: int, height: int, tile_size: int, overlap: int) -> list[Window]:
    """The tiles of a picture, in rows; neighbours share `overlap` pixels at least."""
    return [
        (x, y, min(x + tile_size, width), min(y + tile_size, height))
        for y in _starts(height, tile_size, overlap)
        for x in _starts(width, tile_size, overlap)
    ]


def _starts(length: int, tile_size: int, overlap: int) -> list[int]:
    """Where tiles start along a side, evenly spread."""
    if length <= tile_size:
        return [0]
    count = -(-(length - overlap) // (tile_size - overlap))
    return [round(i * (length - tile_size) / (count - 1)) for i in range(count)]


def is_fragment(window: Window, tile: Window, size: tuple[int, int]) -> bool:
    """Whether a mask ends at an edge of its tile that is not the picture's.

    Args:
        size: (height, width) of the picture.
    """
    height, width = size
    x0, y0, x1, y1 = window
    left, top, right, bottom = tile
    margin = max(_sides(tile)) * FRAGMENT_MARGIN
    return (
        (left > 0 and x0 < left + margin)
        or (top > 0 and y0 < top + margin)
        or (right < width and x1 > right - margin)
        or (bottom < height and y1 > bottom - margin)
    )


def joined(whole: Sequence[Piece], fragments: Sequence[Piece], tile_size: int) -> list[list[Piece]]:
    """The fragments that no whole mask holds, those of one object together."""
    cut = [fragment.window for fragment in fragments]
    left = [
        fragment
        for fragment, holders in zip(
            fragments, _meeting(cut, [w.window for w in whole]), strict=True
        )
        if not any(_is_within(fragment, whole[holder]) for holder in holders)
    ]
    groups = list(range(len(left)))  # each fragment's forerunner in its group; a root is its own

    def root(index: int) -> int:
        while groups[index] != index:
            groups[index] = groups[groups[index]]
            index = groups[index]
        return index

    cut = [fragment.window for fragment in left]
    for index, others in enumerate(_meeting(cut, cut)):
        for other in others:
            if other > index and root(other) != root(index) and _agree(left[index], left[other]):
                groups[root(other)] = root(index)
    objects: dict[int, list[Piece]] = {}
    for index, fragment in enumerate(left):
        objects.setdefault(root(index), []).append(fragment)
    return [o for o in objects.values() if max(_sides(bounds(o))) <= MAX_TILES * tile_size]


def distinct(masks: Sequence[AutoMask], iou_threshold: float) -> list[AutoMask]:
    """Those whose mask no earlier one's equals, by an IoU above the threshold."""
    windows = [_window_of(mask) for mask in masks]
    areas = np.array([mask.area for mask in masks])
    kept: list[int] = []
    for index, mask in enumerate(masks):
        [near] = _meeting([windows[index]], [windows[other] for other in kept])
        for other in (kept[place] for place in near):
            # An IoU is never above the areas' ratio, which is there at once.
            ratio = areas[[index, other]].min() / areas[[index, other]].max()
            if ratio > iou_threshold and _iou(mask, masks[other]) > iou_threshold:
                break
        else:
            kept.append(index)
    return [masks[index] for index in kept]


def bounds(pieces: Iterable[Piece]) -> Window:
    """The window that holds all of these."""
    windows = np.array([piece.window for piece in pieces])
    x0, y0 = windows[:, :2].min(axis=0).tolist()
    x1, y1 = windows[:, 2:].max(axis=0).tolist()
    return x0, y0, x1, y1


def union(pieces: Sequence[Piece]) -> NDArray[np.bool_]:
    """The pixels of any of these, h×w in their `bounds`."""
    x0, y0, x1, y1 = bounds(pieces)
    mask = np.zeros((y1 - y0, x1 - x0), np.bool_)
    for piece in pieces:
        left, top, right, bottom = piece.window
        mask[top - y0 : bottom - y0, left - x0 : right - x0] |= piece.within(piece.window)
    return mask


def _is_within(fragment: Piece, whole: Piece) -> bool:
    shared = _shared(fragment.window, whole.window)
    if shared is None or fragment.tile == whole.tile:
        return False
    covered = np.count_nonzero(fragment.within(shared) & whole.within(shared))
    return bool(covered >= WITHIN * fragment.area)


def _agree(one: Piece, other: Piece) -> bool:
    """Whether they are the same in what both their tiles see."""
    seen = _shared(one.tile, other.tile)
    if seen is None or one.tile == other.tile:
        return False
    areas = []
    for piece in (one, other):
        own = _shared(piece.window, seen)
        areas.append(0 if own is None else int(np.count_nonzero(piece.within(own))))
    both = _shared(one.window, other.window)
    common = 0 if both is None else int(np.count_nonzero(one.within(both) & other.within(both)))
    return common > 0 and common >= SAME * (sum(areas) - common)


def _iou(one: AutoMask, other: AutoMask) -> float:
    shared = _shared(_window_of(one), _window_of(other))
    if shared is None:
        return 0.0
    x0, y0, x1, y1 = shared
    cuts = [
        mask.mask[
            y0 - mask.origin[1] : y1 - mask.origin[1], x0 - mask.origin[0] : x1 - mask.origin[0]
        ]
        for mask in (one, other)
    ]
    common = int(np.count_nonzero(cuts[0] & cuts[1]))
    return common / (one.area + other.area - common)


def _window_of(mask: AutoMask) -> Window:
    (left, top), (height, width) = mask.origin, mask.mask.shape
    return left, top, left + width, top + height


def _meeting(windows: Sequence[Window], others: Sequence[Window]) -> Iterator[list[int]]:
    """For each window, which of the others it meets."""
    x0, y0, x1, y1 = np.array(others).reshape(-1, 4).T
    for left, top, right, bottom in windows:
        meets = (x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)
        yield np.flatnonzero(meets).tolist()


def _shared(one: Window, other: Window) -> Window | None:
    x0, y0 = max(one[0], other[0]), max(one[1], other[1])
    x1, y1 = min(one[2], other[2]), min(one[3], other[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _sides(window: Window) -> tuple[int, int]:
    return window[2] - window[0], window[3] - window[1]
