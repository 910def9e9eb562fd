"""This module answers prompts: boxes, points and masks on an image give a mask each (or three).

The masks equal those of `SamPredictor.predict` for every prompt. All prompts on one image share
its embedding. Prompts of one kind run through the decoder together, even those of different
requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from .errors import InvalidField
from .masks.full_size import LOW_RES_SIDE, FullSize
from .masks.low_res_logits import rounded
from .masks.mask import CompactPromptMask
from .model import Model
from .network.decoder import Decoder, Image
from .network.devices import in_halves

MAX_COORDINATE = 1e6
"""Larger coordinates are refused, so that they stay finite in float32."""


class Kind(NamedTuple):
    """What a prompt has: a box, so many points, a mask; and whether it wants logits."""

    has_box: bool
    points: int
    has_mask: bool
    wants_logits: bool


@dataclass(frozen=True, eq=False)
class Prompt:
    """A Prompt points out one object by a box, points, a mask, or several of these together.

    `prompt_of` makes one from plain values and checks it.

    Attributes:
        box: XYXY float64, pixels of the image.
        point_coords: N×2 XY float64, pixels of the image.
        point_labels: for each point 1 (object) or 0 (background).
        mask_input: 256×256 float32 logits in the network's input frame, as `SamPredictor.predict`.
        multimask_output: whether SAM's three masks are wanted instead of one.
        return_logits: whether the masks shall have their `low_res_logits`.
    """

    box: NDArray[np.float64] | None = None
    point_coords: NDArray[np.float64] | None = None
    point_labels: Sequence[int] | None = None
    mask_input: NDArray[np.float32] | None = None
    multimask_output: bool = False
    return_logits: bool = False

    @property
    def kind(self) -> Kind:
        """Prompts of the same kind can run through the decoder together."""
        points = 0 if self.point_labels is None else len(self.point_labels)
        return Kind(self.box is not None, points, self.mask_input is not None, self.return_logits)


def prompt_of(
    box: ArrayLike | None = None,
    point_coords: ArrayLike | None = None,
    point_labels: ArrayLike | None = None,
    mask_input: ArrayLike | None = None,
    *,
    multimask_output: bool = False,
    return_logits: bool = False,
) -> Prompt:
    """Return a checked prompt. The arguments are those of `SamPredictor.predict`.

    Args:
        box: XYXY, pixels of the image.
        point_coords: N×2 XY, pixels of the image.
        point_labels: N labels, 1 for the object and 0 for the background.
        mask_input: 256×256 or 1×256×256 logits in the network's input frame.
        return_logits: whether the masks shall have their `low_res_logits`.

    Raises:
        InvalidField: nothing was given, an argument has another shape or values that are not
            finite, the box is empty, or the numbers of points and labels differ.
    """
    if box is None and point_coords is None and mask_input is None:
        raise InvalidField("Give a box, point_coords with point_labels, or a mask_input.", "box")
    corners = None if box is None else _numbers(box, "box", (4,))
    if corners is not None and not (corners[0] < corners[2] and corners[1] < corners[3]):
        raise InvalidField(
            f"box is empty or inverted: needs x1 < x2 and y1 < y2, got {corners.tolist()}.", "box"
        )
    coords = None if point_coords is None else _numbers(point_coords, "point_coords", (-1, 2))
    if coords is not None and not len(coords):
        raise InvalidField("point_coords has no point.", "point_coords")
    labels = [] if point_labels is None else _numbers(point_labels, "point_labels", (-1,)).tolist()
    if len(labels) != (0 if coords is None else len(coords)):
        count = 0 if coords is None else len(coords)
        raise InvalidField(
            f"point_labels: {len(labels)} labels for {count} points.", "point_labels"
        )
    if any(label not in (0, 1) for label in labels):
        raise InvalidField("point_labels must be 1 (object) or 0 (background).", "point_labels")
    logits = None
    if mask_input is not None:
        with np.errstate(over="ignore"):  # a number beyond float32 becomes infinite, see below
            logits = _array(mask_input, "mask_input").astype(np.float32)
        if logits.shape not in ((LOW_RES_SIDE,) * 2, (1, LOW_RES_SIDE, LOW_RES_SIDE)):
            raise InvalidField(
                f"mask_input has the shape {logits.shape}; it must be 256x256 logits.", "mask_input"
            )
        logits = logits.reshape(LOW_RES_SIDE, LOW_RES_SIDE)
        if not np.isfinite(logits).all():
            raise InvalidField("mask_input holds NaN or infinity.", "mask_input")
    point_list = None if coords is None else [int(label) for label in labels]
    return Prompt(corners, coords, point_list, logits, multimask_output, return_logits)


def _array(value: ArrayLike, name: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"its type is {array.dtype}")
    # RuntimeError: a tensor of PyTorch that needs its gradient.
    except (TypeError, ValueError, OverflowError, RuntimeError) as exc:
        raise InvalidField(f"{name} must hold real numbers only: {exc}.", name) from exc
    return array


def _numbers(value: ArrayLike, name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return the value as float64 of this shape, in which -1 stands for any length."""
    numbers = _array(value, name).astype(np.float64)
    fits = numbers.ndim == len(shape) and all(
        wanted in (-1, side) for wanted, side in zip(shape, numbers.shape, strict=True)
    )
    if not fits:
        words = "x".join("N" if side == -1 else str(side) for side in shape)
        raise InvalidField(f"{name} has the shape {numbers.shape}; it must be {words}.", name)
    if not (np.abs(numbers) <= MAX_COORDINATE).all():
        raise InvalidField(f"{name} holds a number beyond ±{MAX_COORDINATE:g}, or NaN.", name)
    return numbers


def check_inside(
    prompt: Prompt, size: tuple[int, int], path: str = "", box_name: str = "box"
) -> None:
    """Check that a prompt lies on the image.

    A box may reach over the edge, because clients round, but it must not lie outside. A point may
    lie on the edge.

    Args:
        size: (height, width) of the image in pixels.
        path: the prefix of the field's path in error messages.
        box_name: the name of the box in error messages.

    Raises:
        InvalidField: the box or a point lies outside.
    """
    height, width = size

    def outside(field: str, values: Any) -> InvalidField:
        return InvalidField(f"{field}: {values} lies outside the {width}x{height} image.", field)

    if prompt.box is not None:
        x1, y1, x2, y2 = prompt.box.tolist()
        if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
            raise outside(f"{path}{box_name}", [x1, y1, x2, y2])
    if prompt.point_coords is not None:
        for index, (x, y) in enumerate(prompt.point_coords.tolist()):
            if not (0 <= x <= width and 0 <= y <= height):
                raise outside(f"{path}point_coords.{index}", [x, y])


def predict(
    model: Model, image: Image, requests: Sequence[Sequence[Prompt]]
) -> list[list[CompactPromptMask]]:
    """Return the masks for each request's prompts, in the requests' order.

    They are packed: the pixels of hundreds of masks of a large picture would take gigabytes.

    Args:
        image: the image of all these requests.

    Raises:
        OutOfMemory: the device ran out of memory.
    """
    by_kind: dict[Kind, list[tuple[int, int]]] = {}
    for place, prompts in enumerate(requests):
        for prompt_idx, prompt in enumerate(prompts):
            by_kind.setdefault(prompt.kind, []).append((place, prompt_idx))
    batches: list[list[tuple[int, int]]] = []
    for kind, places in by_kind.items():
        share = -(-len(places) // model.threads.count)
        most = model.decoder.at_once(kind.points, kind.has_mask, kind.wants_logits)
        at_once = max(1, min(most, share))
        batches += [places[i : i + at_once] for i in range(0, len(places), at_once)]
    per_batch = model.threads.map(
        partial(in_halves, partial(_predict, model.decoder, image)),
        [[(idx, requests[place][idx]) for place, idx in batch] for batch in batches],
    )
    answers: dict[tuple[int, int], list[CompactPromptMask]] = {}
    for batch, masks in zip(batches, per_batch, strict=True):
        answers.update(zip(batch, masks, strict=True))
    return [
        [mask for prompt_idx in range(len(prompts)) for mask in answers[place, prompt_idx]]
        for place, prompts in enumerate(requests)
    ]


def _predict(
    decoder: Decoder, image: Image, batch: Sequence[tuple[int, Prompt]]
) -> list[list[CompactPromptMask]]:
    """Return the masks of these prompts, which are of one kind and come with their `prompt_idx`."""
    embedding = image.embedding
    prompts = [prompt for _, prompt in batch]

    def in_frame(coords: list[NDArray[np.float64]]) -> torch.Tensor:
        """Stack coordinates as B×N×2 in the network's input frame."""
        located = embedding.to_input_frame(np.stack(coords).reshape(len(coords), -1, 2))
        return torch.as_tensor(located, dtype=torch.float)

    has_box, points, has_mask, wants_logits = prompts[0].kind
    decoded = decoder.decode(
        image,
        boxes=in_frame([p.box for p in prompts if p.box is not None]).flatten(1)
        if has_box
        else None,
        points=(
            in_frame([p.point_coords for p in prompts if p.point_coords is not None]),
            torch.tensor([p.point_labels for p in prompts], dtype=torch.int),
        )
        if points
        else None,
        masks=torch.as_tensor(
            np.stack([p.mask_input for p in prompts if p.mask_input is not None])[:, None]
        )
        if has_mask
        else None,
        whole=wants_logits,
    )
    full_size = FullSize(embedding)
    multimask_outputs = {prompt.multimask_output for prompt in prompts}
    channels_for = {wanted: decoded.channels(wanted) for wanted in multimask_outputs}
    answers = []
    for index, (prompt_idx, prompt) in enumerate(batch):
        channels = channels_for[prompt.multimask_output][index].tolist()
        low_res_masks = decoded.low_res_masks(index, channels).cpu().numpy()
        predicted_iou = decoded.iou_predictions[index, channels].tolist()
        masks = [full_size.mask(low_res_mask) for low_res_mask in low_res_masks]
        answers.append(
            [
                CompactPromptMask(
                    compact=mask,
                    image_size=embedding.original_size,
                    predicted_iou=iou,
                    prompt_idx=prompt_idx,
                    low_res_logits=rounded(embedding.family.limited(logits))
                    if wants_logits
                    else None,
                )
                for mask, iou, logits in zip(masks, predicted_iou, low_res_masks, strict=True)
            ]
        )
    return answers
