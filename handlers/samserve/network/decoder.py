"""Embedding + prompts -> mask logits: SAM's prompt encoder and mask decoder.

Masks leave the network at 256×256 (`low_res_masks`), less the padding that is none of the image,
and only those that are asked for are made at all: the predicted IoUs come first. Thresholds
nothing and chooses nothing: that is the callers' part.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Protocol

import torch

from .encoder import Embedding
from .exact_decoder import FactoredDecoder, PreparedImage, Upscaling
from .originals import Sam

PROMPTS_AT_ONCE = 16
"""Prompts decoded together by one thread of a CPU; about 3 MB of memory each."""

GPU_PROMPTS_AT_ONCE = 1024
"""On a GPU, if its memory will do: a whole grid of automask's points."""

FACTORED_POINTS = 24
"""Points in a prompt up to which the rewritten decoder is the faster one."""


@dataclass(frozen=True)
class Image:
    """An embedding with what the decoder makes of it, once, for all its prompts."""

    embedding: Embedding
    prepared: PreparedImage

    @property
    def nbytes(self) -> int:
        return self.embedding.features.nbytes + self.prepared.nbytes


class Masks(Protocol):
    """B prompts decoded.

    Attributes:
        iou_predictions: B×4; `single_or_three` says which are whose.
    """

    @property
    def iou_predictions(self) -> torch.Tensor: ...

    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        """C×h×w logits of one prompt: as much of the 256×256 as the image's pixels need."""
        ...

    def of_several(self, prompts: list[int], channels: slice) -> torch.Tensor:
        """K×C×h×w logits of several prompts, made at once: for a GPU, which likes that."""
        ...


def single_or_three(multimask_output: bool) -> slice:
    """Which of the network's four masks: the three for ambiguous prompts, or the one."""
    return slice(1, 4) if multimask_output else slice(0, 1)


class Decoder:
    """The decoder of one model, ready to run.

    Args:
        upscale: what runs in the place of PyTorch's upscaling.

    Attributes:
        prompts_at_once: how many prompts a call of `decode` may have at most, as far as memory
            goes; `at_once` says it for prompts of one kind.
    """

    def __init__(self, model: Sam, upscale: Upscaling | None = None) -> None:
        self._model = model
        on_cpu = model.device.type == "cpu"
        self._factored = FactoredDecoder(model, upscale, at_once=1 if on_cpu else None)
        self.prompts_at_once = PROMPTS_AT_ONCE if on_cpu else GPU_PROMPTS_AT_ONCE
        # A few numbers a prompt, in double precision, which not every device has.
        encoder = model.prompt_encoder
        self._prompt_encoder = encoder if on_cpu else copy.deepcopy(encoder).cpu()

    def at_once(self, points: int, masks: bool) -> int:
        """How many prompts with so many points each, with masks or without, to decode at once."""
        return PROMPTS_AT_ONCE if _goes_plain(points, masks) else self.prompts_at_once

    def prepare(self, embedding: Embedding) -> Image:
        """The image's part of decoding, about as much work as one prompt's."""
        return Image(embedding, self._factored.prepare(embedding.features, embedding.input_size))

    @torch.inference_mode()
    def decode(
        self,
        image: Image,
        *,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
    ) -> Masks:
        """Decode B prompts on one image, in one run of the network.

        The arguments are on the CPU, wherever the model is.

        Args:
            points: (B×N×2 XY, B×N labels: 1 object, 0 background) in the input frame
                (`Embedding.to_input_frame`).
            boxes: B×4 XYXY, in the input frame.
            masks: B×1×256×256 logits of that frame, as `low_res_masks` are.
        """
        if _goes_plain(0 if points is None else points[1].shape[1], masks is not None):
            return decode_plain(
                self._model, image.embedding, points=points, boxes=boxes, masks=masks
            )
        sparse, _ = self._prompt_encoder(points=points, boxes=boxes, masks=None)
        return self._factored.decode(image.prepared, sparse.to(self._model.device))


def _goes_plain(points: int, masks: bool) -> bool:
    """The rewrite shares the image among prompts, into which a mask prompt is mixed; and its
    work grows with the square of the points."""
    return masks or points > FACTORED_POINTS


@dataclass(frozen=True)
class PlainMasks:
    """What `decode_plain` gives: every mask, made already."""

    iou_predictions: torch.Tensor
    masks: torch.Tensor  # B×4×256×256

    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        return self.masks[prompt, channels]

    def of_several(self, prompts: list[int], channels: slice) -> torch.Tensor:
        return self.masks[prompts, channels]


@torch.inference_mode()
def decode_plain(
    model: Sam,
    embedding: Embedding,
    *,
    points: tuple[torch.Tensor, torch.Tensor] | None = None,
    boxes: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
) -> PlainMasks:
    """`Decoder.decode` by the network's own modules: what the rewrite is tested against."""
    device = model.device
    sparse, dense = model.prompt_encoder(
        points=None if points is None else (points[0].to(device), points[1].to(device)),
        boxes=None if boxes is None else boxes.to(device),
        masks=None if masks is None else masks.to(device),
    )
    low_res_masks, iou_predictions = model.mask_decoder.predict_masks(
        image_embeddings=embedding.features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return PlainMasks(iou_predictions, low_res_masks)
