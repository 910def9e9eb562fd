"""A SegmentedObject is one object in a picture: its outline, its pixels and its scores.

The client makes it from an outline, and the library from pixels. The other one is computed when it
is first asked for; outlines run along pixel edges, so that nothing is lost.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pybase64
from numpy.typing import NDArray

from samserve.boxes import EMPTY, Box

from .frame import Frame
from .outlines import area_of, bounds_of, mask_of

if TYPE_CHECKING:
    from PIL.Image import Image
    from shapely import MultiPolygon, Polygon

    from .collection import Objects

NO_QUALITY = 0.0
"""The quality of an object without pixels. The server sends none."""


LOGITS = "low_res_logits"
"""The property of a Feature that has the logits of its mask."""


class SegmentedObject:
    """One object in a picture. `from_outline` and `from_mask` make it.

    Attributes:
        quality: the model's own estimate of the mask's IoU with the true object, about 0 to 1.
        name: the object's class, `object` unless you change it.
        properties: what its GeoJSON Feature says besides: `stability_score` and more.
        frame: the picture that it lies in.
        low_res_logits: 256×256 float16, from which `segment(refine=…)` goes on; None if they were
            not asked for by `return_logits`.
    """

    def __init__(
        self,
        frame: Frame,
        quality: float,
        properties: Mapping[str, Any],
        *,
        outline: Mapping[str, Any] | None = None,
        crop: tuple[NDArray[np.bool_], Box] | None = None,
        low_res_logits: NDArray[np.float16] | None = None,
        name: str = "object",
    ) -> None:
        self.frame = frame
        self.quality = quality
        self.name = name
        self.properties = dict(properties)
        self.low_res_logits = low_res_logits
        if outline is not None:
            self.outline = outline
        if crop is not None:
            self.mask, self.box = crop

    @classmethod
    def from_outline(cls, frame: Frame, feature: Mapping[str, Any]) -> SegmentedObject:
        """Return the object that a Feature of the server describes."""
        properties = dict(feature["properties"])
        quality = properties.pop("quality", None)
        name = str(properties.pop("label", "object"))
        properties.pop("object_idx", None)
        written = properties.pop(LOGITS, None)
        logits = None if written is None else _logits_of(written)
        score = NO_QUALITY if quality is None else float(quality)
        outline = feature["geometry"]
        return cls(frame, score, properties, outline=outline, low_res_logits=logits, name=name)

    @classmethod
    def from_mask(
        cls,
        frame: Frame,
        quality: float,
        properties: Mapping[str, Any],
        mask: NDArray[np.bool_],
        box: Box,
        low_res_logits: NDArray[np.float16] | None = None,
    ) -> SegmentedObject:
        """Return the object with these pixels within its box."""
        empty = not box.area
        crop = (np.zeros((0, 0), np.bool_), EMPTY) if empty else (mask, box)
        score = NO_QUALITY if empty else quality
        return cls(frame, score, properties, crop=crop, low_res_logits=low_res_logits)

    @classmethod
    def nothing(cls, frame: Frame, properties: Mapping[str, Any]) -> SegmentedObject:
        """Return an object without pixels: nothing was found."""
        return cls.from_mask(frame, NO_QUALITY, properties, np.zeros((0, 0), np.bool_), EMPTY)

    @cached_property
    def outline(self) -> Mapping[str, Any]:
        """The outline as a GeoJSON geometry, in pixels of the picture."""
        if not self.box.area:
            return {"type": "Polygon", "coordinates": []}
        # Imported here, because a client needs no OpenCV: it gets outlines.
        from samserve.masks.polygons import mask_to_geometry

        geometry = mask_to_geometry(self.mask, self.box.origin)
        return {"type": "Polygon", "coordinates": []} if geometry is None else geometry

    @cached_property
    def polygon(self) -> Polygon | MultiPolygon:
        """The outline as a shapely geometry, in pixels of the picture.

        A pixel (x, y) is the square from (x, y) to (x + 1, y + 1); y points down.
        """
        from shapely.geometry import Polygon, shape

        return shape(self.outline) if self.outline["coordinates"] else Polygon()

    @cached_property
    def box(self) -> Box:
        """The smallest box around the object, `(x0, y0, x1, y1)`.

        x1 and y1 are the first column and row after it.
        """
        return bounds_of(self.outline)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """h×w bool: the object's pixels within `box`."""
        return mask_of(self.outline, self.box)

    def full(self) -> NDArray[np.bool_]:
        """Return the mask at the size of the picture, H×W bool."""
        full = np.zeros(self.frame.size, np.bool_)
        full[self.box.slices(Box.at((0, 0), self.frame.size))] = self.mask
        return full

    @cached_property
    def area(self) -> int:
        """The number of pixels."""
        if "mask" in self.__dict__:
            return int(np.count_nonzero(self.mask))
        return area_of(self.outline)

    @property
    def prompt_idx(self) -> int | None:
        """Which of the boxes of `segment` the object answers, from 0; None after `automask`."""
        index = self.properties.get("prompt_idx")
        return None if index is None else int(index)

    @property
    def __geo_interface__(self) -> dict[str, Any]:
        """The object as a GeoJSON Feature in pixels. Shapely and geopandas read it."""
        properties = {"label": self.name, "quality": self.quality, **self.properties}
        return {"type": "Feature", "geometry": self.outline, "properties": properties}

    def overlay(self, path: str | os.PathLike[str] | None = None) -> Image:
        """Return the picture with the object drawn on it; see `Objects.overlay`."""
        return self._alone().overlay(path)

    def _repr_png_(self) -> bytes | None:
        return self._alone()._repr_png_()

    def _alone(self) -> Objects:
        from .collection import Objects

        return Objects([self], self.frame)

    def __repr__(self) -> str:
        x0, y0, x1, y1 = self.box
        return (
            f"<{self.name}: {self.area} pixels in ({x0}, {y0}, {x1}, {y1}), "
            f"quality {self.quality:.3f}>"
        )


def _logits_of(written: Mapping[str, Any]) -> NDArray[np.float16]:
    """Return the logits that a Feature has as base64."""
    content = pybase64.b64decode(written["data"])
    return np.frombuffer(content, "<f2").astype(np.float16).reshape(written["shape"])
