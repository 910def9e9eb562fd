"""This module cuts a picture much larger than the network's input into tiles, and joins seams.

Each tile is a picture of its own to the network, at its native scale, and overlaps its neighbours.
A mask that ends at a tile's inner edge is a *fragment*; any other mask is *whole*. Then

1. of the whole masks that several tiles saw, the best one stays. Their boxes are compared, as
   segment-anything does among its crops;
2. a fragment inside a whole mask is dropped: the tile that saw the whole object saw this part too;
3. fragments of two tiles belong to one object if they agree where both tiles see: their IoU there
   is at least one half. Connected fragments are joined, over any number of seams;
4. of the remaining objects, those whose masks are nearly equal are one object. Boxes are not enough
   here: one stray pixel far away changes the box.

So an object no larger than the overlap is whole in some tile, and larger objects are joined.
micro-sam joins labels that touch along a seam, which allows one label per pixel. cellpose averages
the network's flow fields before it makes objects. SAM's masks may lie inside each other, so each
pair is compared by itself.

Where it fails: an object stays in pieces if the network outlines it so differently in two tiles
that the IoU is below one half. Two objects become one if they look like one in the strip that both
tiles see. An object that spans more than `MAX_TILES` tiles (mostly background) is dropped, so that
the memory depends on the tile and not on the picture.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .boxes import Box
from .masks.mask import AutoMask

FRAGMENT_MARGIN = 1 / 128
"""A mask counts as cut if it comes so close to an inner edge, as a share of the tile's long side.

It is two of the 256 cells that the network's masks have along that side."""

SAME = 0.5
"""Two fragments are one object from this IoU on, where both tiles see."""

WITHIN = 0.8
"""A fragment is dropped if a whole mask covers this part of it."""

MAX_TILES = 4
"""Side of the largest object in tiles."""


@dataclass(frozen=True, eq=False)
class Piece:
    """A mask that one tile gave. It is a fragment, or the whole object.

    Attributes:
        box: the box around the mask, in pixels of the picture.
        bits: the mask's rows within the box, packed.
        tile: the tile.
        area: the number of the mask's pixels.
        predicted_iou, stability_score: the mask's scores.
        point: the (x, y) that prompted it, in pixels of the picture.
    """

    box: Box
    bits: NDArray[np.uint8]
    tile: Box
    area: int
    predicted_iou: float
    stability_score: float
    point: tuple[float, float]

    def within(self, part: Box) -> NDArray[np.bool_]:
        """Return the mask's pixels in a part of its box."""
        rows, columns = part.slices(self.box)
        mask = np.unpackbits(self.bits[rows], axis=1, count=self.box.width).view(np.bool_)
        return mask[:, columns]


def tiles(width: int, height: int, tile_size: int, overlap: int) -> list[Box]:
    """Return the tiles of a picture, row by row; neighbours share at least `overlap` pixels."""
    return [
        Box(x, y, min(x + tile_size, width), min(y + tile_size, height))
        for y in _starts(height, tile_size, overlap)
        for x in _starts(width, tile_size, overlap)
    ]


def _starts(length: int, tile_size: int, overlap: int) -> list[int]:
    """Return the first pixels of the tiles along a side, evenly spread."""
    if length <= tile_size:
        return [0]
    count = -(-(length - overlap) // (tile_size - overlap))
    return [round(i * (length - tile_size) / (count - 1)) for i in range(count)]


def is_fragment(box: Box, tile: Box, size: tuple[int, int]) -> bool:
    """Return whether a mask ends at an edge of its tile that is no edge of the picture.

    Args:
        box: the box around the mask.
        size: (height, width) of the picture.
    """
    height, width = size
    margin = max(tile.size) * FRAGMENT_MARGIN
    return (
        (tile.x0 > 0 and box.x0 < tile.x0 + margin)
        or (tile.y0 > 0 and box.y0 < tile.y0 + margin)
        or (tile.x1 < width and box.x1 > tile.x1 - margin)
        or (tile.y1 < height and box.y1 > tile.y1 - margin)
    )


def joined(whole: Sequence[Piece], fragments: Sequence[Piece], tile_size: int) -> list[list[Piece]]:
    """Return the fragments that lie in no whole mask, grouped by object."""
    cut = [fragment.box for fragment in fragments]
    left = [
        fragment
        for fragment, holders in zip(
            fragments, _meeting(cut, [mask.box for mask in whole]), strict=True
        )
        if not any(_is_within(fragment, whole[holder]) for holder in holders)
    ]
    groups = list(range(len(left)))  # union-find: each fragment's parent; a root is its own parent

    def root(index: int) -> int:
        while groups[index] != index:
            groups[index] = groups[groups[index]]
            index = groups[index]
        return index

    cut = [fragment.box for fragment in left]
    for index, others in enumerate(_meeting(cut, cut)):
        for other in others:
            if other > index and root(other) != root(index) and _agree(left[index], left[other]):
                groups[root(other)] = root(index)
    objects: dict[int, list[Piece]] = {}
    for index, fragment in enumerate(left):
        objects.setdefault(root(index), []).append(fragment)
    return [o for o in objects.values() if max(bounds(o).size) <= MAX_TILES * tile_size]


def distinct(masks: Sequence[AutoMask], iou_threshold: float) -> list[AutoMask]:
    """Return the masks without those whose IoU with an earlier one is above the threshold."""
    boxes = [mask.box for mask in masks]
    areas = np.array([mask.area for mask in masks])
    kept: list[int] = []
    for index, mask in enumerate(masks):
        [near] = _meeting([boxes[index]], [boxes[other] for other in kept])
        for other in (kept[place] for place in near):
            # The ratio of the areas is an upper bound of the IoU, and cheap.
            ratio = areas[[index, other]].min() / areas[[index, other]].max()
            if ratio > iou_threshold and _iou(mask, masks[other]) > iou_threshold:
                break
        else:
            kept.append(index)
    return [masks[index] for index in kept]


def bounds(pieces: Iterable[Piece]) -> Box:
    """Return the box around all of these pieces."""
    return Box.around(piece.box for piece in pieces)


def union(pieces: Sequence[Piece]) -> NDArray[np.bool_]:
    """Return the pixels of any of these pieces, h×w in their `bounds`."""
    box = bounds(pieces)
    mask = np.zeros(box.size, np.bool_)
    for piece in pieces:
        mask[piece.box.slices(box)] |= piece.within(piece.box)
    return mask


def _is_within(fragment: Piece, whole: Piece) -> bool:
    shared = fragment.box.shared(whole.box)
    if shared is None or fragment.tile == whole.tile:
        return False
    covered = np.count_nonzero(fragment.within(shared) & whole.within(shared))
    return bool(covered >= WITHIN * fragment.area)


def _agree(one: Piece, other: Piece) -> bool:
    """Return whether the two masks agree where both tiles see."""
    seen = one.tile.shared(other.tile)
    if seen is None or one.tile == other.tile:
        return False
    areas = []
    for piece in (one, other):
        part = piece.box.shared(seen)
        areas.append(0 if part is None else int(np.count_nonzero(piece.within(part))))
    both = one.box.shared(other.box)
    common = 0 if both is None else int(np.count_nonzero(one.within(both) & other.within(both)))
    return common > 0 and common >= SAME * (sum(areas) - common)


def _iou(one: AutoMask, other: AutoMask) -> float:
    shared = one.box.shared(other.box)
    if shared is None:
        return 0.0
    cuts = [mask.mask[shared.slices(mask.box)] for mask in (one, other)]
    common = int(np.count_nonzero(cuts[0] & cuts[1]))
    return common / (one.area + other.area - common)


def _meeting(boxes: Sequence[Box], others: Sequence[Box]) -> Iterator[list[int]]:
    """Yield, for each box, the indices of the other boxes that share pixels with it."""
    x0, y0, x1, y1 = np.array(others).reshape(-1, 4).T
    for left, top, right, bottom in boxes:
        meets = (x0 < right) & (x1 > left) & (y0 < bottom) & (y1 > top)
        yield np.flatnonzero(meets).tolist()
