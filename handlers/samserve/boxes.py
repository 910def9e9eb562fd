"""A Box is a rectangle of whole pixels. This module is the only place that converts rectangles.

Segment Anything and its users write rectangles in several ways. Inside this package every
rectangle of pixels is a `Box`; its properties give the other ways.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """The pixels of an image with x0 <= x < x1 and y0 <= y < y1; origin at the top left.

    A box without pixels is `EMPTY`.
    """

    x0: int
    y0: int
    x1: int
    y1: int

    @classmethod
    def at(cls, origin: tuple[int, int], size: tuple[int, int]) -> Box:
        """Return the box of this size whose first pixel is `origin`.

        Args:
            origin: (x0, y0).
            size: (height, width), as the shape of an array.
        """
        (x0, y0), (height, width) = origin, size
        return cls(x0, y0, x0 + width, y0 + height)

    @classmethod
    def around(cls, boxes: Iterable[Box]) -> Box:
        """Return the smallest box that holds all of these, of which there is at least one."""
        sides = np.array(list(boxes))
        x0, y0 = sides[:, :2].min(axis=0).tolist()
        x1, y1 = sides[:, 2:].max(axis=0).tolist()
        return cls(x0, y0, x1, y1)

    @property
    def width(self) -> int:
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        return self.y1 - self.y0

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), as the shape of an array."""
        return self.height, self.width

    @property
    def origin(self) -> tuple[int, int]:
        """(x0, y0), the first pixel."""
        return self.x0, self.y0

    @property
    def area(self) -> int:
        """The number of pixels."""
        return self.width * self.height

    @property
    def inclusive(self) -> tuple[int, int, int, int]:
        """XYXY of the first and the last pixel, as segment-anything's `batched_mask_to_box`."""
        return self.x0, self.y0, self.x1 - 1, self.y1 - 1

    @property
    def xywh(self) -> tuple[int, int, int, int]:
        """(x, y, width - 1, height - 1), segment-anything's `bbox` of an object.

        It counts the steps from the first pixel to the last one, so that a single pixel has the
        width 0.
        """
        return self.x0, self.y0, max(0, self.width - 1), max(0, self.height - 1)

    def shifted(self, dx: int, dy: int) -> Box:
        """Return the same box moved by (dx, dy) pixels."""
        return Box(self.x0 + dx, self.y0 + dy, self.x1 + dx, self.y1 + dy)

    def shared(self, other: Box) -> Box | None:
        """Return the pixels that both boxes have; None where there are none."""
        x0, y0 = max(self.x0, other.x0), max(self.y0, other.y0)
        x1, y1 = min(self.x1, other.x1), min(self.y1, other.y1)
        return Box(x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def slices(self, outer: Box) -> tuple[slice, slice]:
        """Return (rows, columns) by which an array over `outer` gives the pixels of this box."""
        rows = slice(self.y0 - outer.y0, self.y1 - outer.y0)
        return rows, slice(self.x0 - outer.x0, self.x1 - outer.x0)


EMPTY = Box(0, 0, 0, 0)
"""The box of a mask without pixels."""
