"""This module writes an answer as an image: the objects numbered, or all of them white.

The masks come one after the other, in the order of the other formats. Only one of them has to be in
memory, beside the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from samserve.errors import TooLarge
from samserve.masks.mask import ObjectMask

if TYPE_CHECKING:
    from .formats import Content

PNG = "image/png"

MAX_LABELS = 2**16 - 1
"""The most objects in a label image. PNG has no grey of more than 16 bits."""

PIXEL_S = 1e-8
"""Seconds per pixel of the picture to write the PNG. An EPYC core."""

PAINT_S = 5e-9
"""Seconds per pixel of a mask's box to paint it."""

_PIXELS_AT_ONCE = 2**18  # so many fit into the processor's cache

Canvas: TypeAlias = "NDArray[np.uint8] | NDArray[np.uint16]"


class Written(NamedTuple):
    """The bytes of an answer. If it is an image, the predicted IoUs of its objects come with it."""

    body: bytes
    qualities: list[float] | None = None


class Drawn(NamedTuple):
    """An image, and the predicted IoUs of the objects in it, in their order."""

    canvas: Canvas
    qualities: list[float]


@dataclass(frozen=True)
class ImageFormat:
    """An output format that is an image. It has the size of the picture.

    Attributes:
        name: its name in `output_format`.
        draw: draws the objects.
    """

    name: str
    draw: Callable[[Content], Drawn]
    media_type: str = PNG

    def write(self, content: Content) -> Written:
        """Return the answer's bytes, and the objects' predicted IoUs, which the image lacks.

        Raises:
            TooLarge: there are more objects than labels, or more bytes than `content.max_bytes`.
        """
        height, width = content.size
        content.allow(0, height * width * PIXEL_S)
        canvas, qualities = self.draw(content)
        written = _png(canvas)
        if content.max_bytes is not None and len(written) > content.max_bytes:
            raise TooLarge(
                f"The image has {len(written)} bytes; this server's limit is {content.max_bytes}. "
                "Ask for fewer objects, or for another output_format."
            )
        return Written(written, qualities)


def labels(content: Content) -> Drawn:
    """Draw the value i + 1 where the object with `object_idx` i is, and 0 on the background.

    Where masks overlap, the smaller object lies on top; of two with the same area, the later one.
    """
    canvas = np.zeros(content.size, np.uint16)
    qualities: list[float] = []
    # The background counts as larger than every object. Grows by doubling, as a list does.
    areas = np.full(256, np.iinfo(np.int64).max)
    for mask in _objects(content):
        label = len(qualities) + 1
        if label > MAX_LABELS:
            raise TooLarge(
                f"There are more than {MAX_LABELS} objects, and a PNG of 16 bits can number no "
                "more. Ask for another output_format.",
                "output_format",
            )
        if label == len(areas):
            areas = np.concatenate([areas, areas])
        areas[label] = mask.area
        for part, inside in _strips(canvas, mask):
            np.copyto(part, np.uint16(label), where=inside & (areas[part] >= areas[label]))
        qualities.append(float(mask.predicted_iou))
    return Drawn(canvas, qualities)


def union(content: Content) -> Drawn:
    """Draw white where there is any object, and black elsewhere."""
    canvas = np.zeros(content.size, np.uint8)
    qualities: list[float] = []
    for mask in _objects(content):
        for part, inside in _strips(canvas, mask):
            np.copyto(part, np.uint8(255), where=inside)
        qualities.append(float(mask.predicted_iou))
    return Drawn(canvas, qualities)


IMAGE_FORMATS = (ImageFormat("label_png", labels), ImageFormat("mask_png", union))


def _objects(content: Content) -> Iterator[ObjectMask]:
    """Yield the masks that are objects: an empty mask is none, and gets no number."""
    for mask in content.masks:
        if mask.mask.any():
            content.allow(0, mask.mask.size * PAINT_S)
            yield mask


def _strips(canvas: Canvas, mask: ObjectMask) -> Iterator[tuple[Canvas, NDArray[np.bool_]]]:
    """Yield the canvas within the mask's box, and the mask, some rows at a time."""
    (x0, y0, x1, _), rows = mask.box, max(1, _PIXELS_AT_ONCE // mask.mask.shape[1])
    for start in range(0, len(mask.mask), rows):
        inside = mask.mask[start : start + rows]
        yield canvas[y0 + start : y0 + start + len(inside), x0:x1], inside


def _png(canvas: Canvas) -> bytes:
    # Rows resemble the rows above them. So this filter makes a label image as small as others do,
    # in a third of the time.
    how = [
        *(cv2.IMWRITE_PNG_COMPRESSION, 1),
        *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT),
        *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP),
    ]
    written, encoded = cv2.imencode(".png", canvas, how)
    if not written:
        raise RuntimeError("OpenCV wrote no PNG.")
    return bytes(encoded)
