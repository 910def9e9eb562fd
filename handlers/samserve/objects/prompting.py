"""This module checks the arguments of `segment`, for the client and for the library alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from samserve.errors import InvalidField

from .frame import Frame
from .segmented import SegmentedObject


@dataclass(frozen=True)
class PlainPrompt:
    """What points out one object, as plain numbers in pixels of the picture.

    Attributes:
        box: [x0, y0, x1, y1], or None.
        points: [[x, y], …].
        labels: for each point 1 (object) or 0 (background).
        mask_input: 256×256 float16, the logits of the mask to refine; or None.
    """

    box: list[float] | None
    points: list[list[float]]
    labels: list[int]
    mask_input: NDArray[np.float16] | None = None


def plain_prompts(
    box: ArrayLike | None,
    points: ArrayLike | None,
    labels: ArrayLike | None,
    boxes: ArrayLike | None,
    refine: SegmentedObject | None,
    frame: Frame,
) -> list[PlainPrompt]:
    """Return the prompts that these arguments of `segment` describe.

    Args:
        frame: the picture. A box may reach over its edge, a point may lie on it.

    Raises:
        InvalidField: an argument has another shape, is no number, or lies outside the picture; a
            box is empty; nothing was given; or both one prompt and several boxes.
    """
    size = frame.size
    if boxes is not None:
        if not (box is None and points is None and labels is None and refine is None):
            raise InvalidField(
                "Give either boxes, or one box, points and refine: any of them.", "boxes"
            )
        several = _numbers(boxes, "boxes", (-1, 4))
        return [
            PlainPrompt(_box(corners, f"boxes.{index}", size), [], [])
            for index, corners in enumerate(several)
        ]
    logits = None if refine is None else _logits_of(refine, frame)
    if box is None and points is None and logits is None:
        raise InvalidField("Give a box, points, or both; or several boxes.", "box")
    corners = None if box is None else _box(_numbers(box, "box", (4,)), "box", size)
    coords = np.zeros((0, 2)) if points is None else _numbers(points, "points", (-1, 2))
    if points is not None and not len(coords):
        raise InvalidField("points has no point.", "points")
    height, width = size
    for index, (x, y) in enumerate(coords.tolist()):
        if not (0 <= x <= width and 0 <= y <= height):
            raise _outside(f"points.{index}", [x, y], size)
    return [PlainPrompt(corners, coords.tolist(), _labels(labels, len(coords)), logits)]


def _logits_of(refine: SegmentedObject, frame: Frame) -> NDArray[np.float16]:
    if refine.frame.size != frame.size:
        raise InvalidField("refine: the object lies in another picture.", "refine")
    if refine.low_res_logits is None:
        raise InvalidField(
            "refine: the object has no logits. Ask for them when you segment it: "
            "segment(…, return_logits=True).",
            "refine",
        )
    return refine.low_res_logits


def _labels(labels: ArrayLike | None, n_points: int) -> list[int]:
    if labels is None:
        return [1] * n_points
    numbers = _numbers(labels, "labels", (-1,)).tolist()
    if len(numbers) != n_points:
        raise InvalidField(f"labels: {len(numbers)} labels for {n_points} points.", "labels")
    if any(label not in (0, 1) for label in numbers):
        raise InvalidField("labels must be 1 (object) or 0 (background).", "labels")
    return [int(label) for label in numbers]


def _outside(name: str, values: list[float], size: tuple[int, int]) -> InvalidField:
    height, width = size
    return InvalidField(f"{name}: {values} lies outside the {width}×{height} picture.", name)


def _box(corners: NDArray[np.float64], name: str, size: tuple[int, int]) -> list[float]:
    x0, y0, x1, y1 = corners.tolist()
    if not (x0 < x1 and y0 < y1):
        raise InvalidField(
            f"{name} is empty or inverted: needs x0 < x1 and y0 < y1, got {corners.tolist()}.", name
        )
    if x0 >= size[1] or y0 >= size[0] or x1 <= 0 or y1 <= 0:
        raise _outside(name, [x0, y0, x1, y1], size)
    return [x0, y0, x1, y1]


def _numbers(value: ArrayLike, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    try:
        array: NDArray[Any] = np.asarray(value)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"its type is {array.dtype}")
        numbers = array.astype(np.float64)
    except (TypeError, ValueError) as exc:
        raise InvalidField(f"{name} must hold numbers only: {exc}.", name) from exc
    if not numbers.size and -1 in shape:
        return np.zeros([0 if side == -1 else side for side in shape])
    fits = numbers.ndim == len(shape) and all(
        wanted in (-1, side) for wanted, side in zip(shape, numbers.shape, strict=True)
    )
    if not fits:
        words = "×".join("N" if side == -1 else str(side) for side in shape)
        hint = " Write one point as points=[(x, y)]." if name == "points" else ""
        raise InvalidField(
            f"{name} has the shape {numbers.shape}; it must be {words} numbers.{hint}", name
        )
    if not np.isfinite(numbers).all():
        raise InvalidField(f"{name} holds NaN or infinity.", name)
    return numbers
