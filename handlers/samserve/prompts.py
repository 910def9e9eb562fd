"""Answers to prompts: boxes, points and masks on an image -> a mask each (or three).

Equal to `SamPredictor.predict` for every prompt. All prompts on one image share its embedding;
those of a kind run through the decoder together, be they of one request or of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from samserve.answers.features import PromptMask
from samserve.masks.full_size import FullSize
from samserve.network.decoder import Decoder, Image, single_or_three
from samserve.network.devices import in_halves
from samserve.network.encoder import Embedding
from samserve.pictures.drawn_masks import mask_input
from samserve.serving.requests import Prompt, PromptRequest

from .errors import InvalidField
from .segmenter import Segmenter


@dataclass(frozen=True, eq=False)
class LocatedPrompt:
    """One prompt, known to fit its image.

    Attributes:
        box: XYXY float64, pixels of the image.
        point_coords: N×2 XY float64, pixels of the image.
        point_labels: for each point 1, object, or 0, background.
        mask_input: 256×256 float32 logits in the network's frame.
        channels: which of the network's masks answer it.
    """

    box: NDArray[np.float64] | None
    point_coords: NDArray[np.float64] | None
    point_labels: list[int] | None
    mask_input: NDArray[np.float32] | None
    channels: slice

    @property
    def kind(self) -> tuple[bool, int, bool]:
        """Prompts of one kind fit into one run."""
        points = 0 if self.point_labels is None else len(self.point_labels)
        return self.box is not None, points, self.mask_input is not None


def locate(request: PromptRequest, embedding: Embedding, max_pixels: int) -> list[LocatedPrompt]:
    """The request's prompts on its image, in the order sent.

    A box may reach over the edge (clients round), but not lie outside; a point may lie on it.

    Args:
        max_pixels: the most that a mask prompt may have.

    Raises:
        SamserveError: no prompt, a contradictory one, or one that does not fit the image.
    """
    channels = single_or_three(request.multimask_output)
    return [
        LocatedPrompt(
            box=_box(prompt, path, embedding),
            point_coords=_point_coords(prompt, path, embedding),
            point_labels=prompt.point_labels,
            mask_input=(
                None
                if prompt.b64mask is None
                else mask_input(
                    prompt.b64mask,
                    embedding.original_size,
                    embedding.input_size,
                    max_pixels,
                    f"{path}b64mask",
                )
            ),
            channels=channels,
        )
        for path, prompt in request.each_prompt()
    ]


def _box(prompt: Prompt, path: str, embedding: Embedding) -> NDArray[np.float64] | None:
    if prompt.bbox is None:
        return None
    height, width = embedding.original_size
    x1, y1, x2, y2 = prompt.bbox
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        raise InvalidField(
            f"{path}bbox: {[x1, y1, x2, y2]} lies outside the {width}x{height} image.",
            f"{path}bbox",
        )
    return np.array(prompt.bbox, np.float64)


def _point_coords(prompt: Prompt, path: str, embedding: Embedding) -> NDArray[np.float64] | None:
    if prompt.point_coords is None:
        return None
    height, width = embedding.original_size
    for index, (x, y) in enumerate(prompt.point_coords):
        if not (0 <= x <= width and 0 <= y <= height):
            field = f"{path}point_coords.{index}"
            raise InvalidField(f"{field}: {[x, y]} lies outside the {width}x{height} image.", field)
    return np.array(prompt.point_coords, np.float64)


def predict(
    segmenter: Segmenter, image: Image, requests: Sequence[Sequence[LocatedPrompt]]
) -> list[list[PromptMask]]:
    """Masks for each request's prompts, in its order.

    Args:
        image: the image of every one of these requests.

    Raises:
        OutOfMemory: the device's memory does not do for all of them together.
    """
    by_kind: dict[tuple[bool, int, bool], list[tuple[int, int]]] = {}
    for place, prompts in enumerate(requests):
        for prompt_idx, prompt in enumerate(prompts):
            by_kind.setdefault(prompt.kind, []).append((place, prompt_idx))
    batches: list[list[tuple[int, int]]] = []
    for (_, points, has_mask), asked in by_kind.items():
        share = -(-len(asked) // segmenter.threads.count)
        at_once = max(1, min(segmenter.decoder.at_once(points, has_mask), share))
        batches += [asked[i : i + at_once] for i in range(0, len(asked), at_once)]
    per_batch = segmenter.threads.map(
        partial(in_halves, partial(_predict, segmenter.decoder, image)),
        [[(idx, requests[place][idx]) for place, idx in batch] for batch in batches],
    )
    answers: dict[tuple[int, int], list[PromptMask]] = {}
    for batch, masks in zip(batches, per_batch, strict=True):
        answers.update(zip(batch, masks, strict=True))
    return [
        [mask for prompt_idx in range(len(prompts)) for mask in answers[place, prompt_idx]]
        for place, prompts in enumerate(requests)
    ]


def _predict(
    decoder: Decoder, image: Image, batch: Sequence[tuple[int, LocatedPrompt]]
) -> list[list[PromptMask]]:
    """The masks of each of these prompts, which are of one kind; with them their `prompt_idx`."""
    embedding = image.embedding
    prompts = [prompt for _, prompt in batch]

    def in_frame(coords: list[NDArray[np.float64]]) -> torch.Tensor:
        """B×N×2 in the network's input frame."""
        located = embedding.to_input_frame(np.stack(coords).reshape(len(coords), -1, 2))
        return torch.as_tensor(located, dtype=torch.float)

    has_box, points, has_mask = prompts[0].kind
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
    )
    full_size = FullSize(embedding)
    answers = []
    for index, (prompt_idx, prompt) in enumerate(batch):
        low_res_masks = decoded.low_res_masks(index, prompt.channels).cpu().numpy()
        predicted_iou = decoded.iou_predictions[index, prompt.channels].tolist()
        masks = [full_size.mask(low_res_mask) for low_res_mask in low_res_masks]
        answers.append(
            [
                PromptMask(mask.pixels(), mask.origin, predicted_iou=iou, prompt_idx=prompt_idx)
                for mask, iou in zip(masks, predicted_iou, strict=True)
            ]
        )
    return answers
