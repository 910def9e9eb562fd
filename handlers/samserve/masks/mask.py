"""A mask of one object: its pixels, its box and its scores. This is what callers get.

A mask is kept as the crop around its object, because an image with a thousand objects would
otherwise take a thousand times its own size. Even the crops of a large picture's masks can take
gigabytes together. So the library's own callers get `Compact` masks, and unpack one at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from samserve.boxes import EMPTY, Box

from .low_res_logits import to_json

if TYPE_CHECKING:
    from shapely import MultiPolygon, Polygon
    from typing_extensions import Self

    from .compact import CompactMask


@dataclass(frozen=True, eq=False)
class ObjectMask:
    """The mask of one object.

    Attributes:
        mask: h×w bool, the object's pixels within `box`.
        box: the smallest box that holds the object, in pixels of the image.
        image_size: (height, width) of the image in pixels.
        predicted_iou: the model's own estimate of this mask's IoU with the true object, about 0
            to 1.
    """

    mask: NDArray[np.bool_] = field(repr=False)
    box: Box
    image_size: tuple[int, int]
    predicted_iou: float

    @property
    def area(self) -> int:
        """The object's area in pixels."""
        return int(np.count_nonzero(self.mask))

    @property
    def array(self) -> NDArray[np.bool_]:
        """H×W bool, the mask at the size of the image. It is made anew at each access."""
        full = np.zeros(self.image_size, np.bool_)
        full[self.box.slices(Box.at((0, 0), self.image_size))] = self.mask
        return full

    @property
    def polygon(self) -> Polygon | MultiPolygon:
        """The exact outline, as a shapely Polygon or MultiPolygon in pixels of the image.

        A pixel (x, y) is the square from (x, y) to (x + 1, y + 1), y pointing down. An empty mask
        has an empty Polygon.
        """
        # Imported here, so that the type itself needs neither shapely nor OpenCV.
        from shapely.geometry import Polygon, shape

        from .polygons import mask_to_geometry

        geometry = mask_to_geometry(self.mask, self.box.origin)
        return Polygon() if geometry is None else shape(geometry)

    def properties(self) -> dict[str, Any]:
        """Return what its GeoJSON Feature says beyond what every Feature says."""
        return {}

    @property
    def work(self) -> tuple[int, int]:
        """What is left to do to get the pixels; see `Compact`."""
        return self.mask.size, 0

    def unpacked(self) -> Self:
        """Return the mask itself, which has its pixels already; see `Compact`."""
        return self


@dataclass(frozen=True, eq=False)
class PromptMask(ObjectMask):
    """A mask that answers a prompt.

    Attributes:
        prompt_idx: the prompt's place in the request, from 0.
        low_res_logits: 256×256 float16 logits of this mask in the network's input frame, with which
            a further prompt refines it; None if they were not asked for.
    """

    prompt_idx: int
    low_res_logits: NDArray[np.float16] | None = field(default=None, repr=False)

    def properties(self) -> dict[str, Any]:
        logits = self.low_res_logits
        return {
            "prompt_idx": int(self.prompt_idx),
            **({} if logits is None else {"low_res_logits": to_json(logits)}),
        }


class Compact(Protocol):
    """A mask of one object that takes little memory until it is unpacked.

    Attributes:
        work: the pixels in the mask's box, and those along its outline; see `compact.Work`.
    """

    @property
    def work(self) -> tuple[int, int]: ...

    def unpacked(self) -> ObjectMask:
        """Return the mask with its pixels. It is made anew at each call."""
        ...


@dataclass(frozen=True, eq=False)
class CompactPromptMask:
    """A `PromptMask` whose pixels are not unpacked yet."""

    compact: CompactMask = field(repr=False)
    image_size: tuple[int, int]
    predicted_iou: float
    prompt_idx: int
    low_res_logits: NDArray[np.float16] | None = field(default=None, repr=False)

    @property
    def work(self) -> tuple[int, int]:
        return self.compact.work

    def unpacked(self) -> PromptMask:
        return PromptMask(
            mask=self.compact.pixels(),
            box=self.compact.box,
            image_size=self.image_size,
            predicted_iou=self.predicted_iou,
            prompt_idx=self.prompt_idx,
            low_res_logits=self.low_res_logits,
        )


@dataclass(frozen=True, eq=False)
class AutoMask(ObjectMask):
    """The mask of an object that automask found.

    Attributes:
        stability_score: IoU of the mask cut at a higher and at a lower threshold of the logits,
            as segment-anything's `calculate_stability_score`.
        point_coords: [[x, y]], the grid point whose prompt gave this mask, in pixels of the image.
    """

    stability_score: float
    point_coords: list[list[float]]

    def with_mask(self, mask: NDArray[np.bool_], origin: tuple[int, int]) -> AutoMask:
        """Return the same object with other pixels.

        Args:
            mask: h×w bool, of any size; the result keeps the crop around its pixels.
            origin: (x0, y0), the image's pixel at the mask's first one.
        """
        box = _bounds(mask)
        return replace(self, mask=_cut(mask, box), box=box.shifted(*origin))

    def properties(self) -> dict[str, Any]:
        return {
            "stability_score": float(self.stability_score),
            "area": self.area,
            "bbox": [int(side) for side in self.box.xywh],
            "point_coords": [[float(x), float(y)] for x, y in self.point_coords],
        }


@dataclass(frozen=True, eq=False)
class CompactAutoMask:
    """An `AutoMask` whose pixels are not unpacked yet."""

    compact: CompactMask = field(repr=False)
    box: Box
    image_size: tuple[int, int]
    predicted_iou: float
    point: tuple[float, float]

    @property
    def area(self) -> int:
        """The object's area in pixels. It is known before the mask is unpacked."""
        return self.compact.area

    @property
    def work(self) -> tuple[int, int]:
        return self.compact.work

    def unpacked(self) -> AutoMask:
        return AutoMask(
            mask=self.compact.pixels(),
            box=self.box,
            image_size=self.image_size,
            predicted_iou=self.predicted_iou,
            stability_score=float(self.compact.stability_score),
            point_coords=[list(self.point)],
        )


def _bounds(mask: NDArray[np.bool_]) -> Box:
    """Return the box around a mask's pixels, in the mask's own frame."""
    rows = np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return EMPTY
    y0, y1 = int(rows[0]), int(rows[-1]) + 1
    columns = np.flatnonzero(mask[y0:y1].any(axis=0))
    return Box(int(columns[0]), y0, int(columns[-1]) + 1, y1)


def _cut(mask: NDArray[np.bool_], box: Box) -> NDArray[np.bool_]:
    # A copy: a view would keep the whole frame in memory for as long as the crop lives.
    return mask[box.slices(Box.at((0, 0), mask.shape))].copy()
