"""This module computes mask logits from an embedding and prompts: prompt encoder and mask decoder.

Masks have the network's 256×256 resolution (`low_res_masks`), without the padding beyond the image.
The predicted IoUs are computed first, and a mask only when its logits are read. Callers choose
among the masks and threshold them.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from .decoded import FourMasks, Masks
from .encoder import Embedding
from .exact_decoder import ExactDecoder, PreparedImage, Upscaling
from .families import Network, family_of

PROMPTS_AT_ONCE = 16
"""The number of prompts that one thread of a CPU decodes in a call; about 3 MB of memory each."""

ORIGINAL_AT_ONCE = 4
"""The same for the original decoder, in which a prompt takes up to 130 MB."""

GPU_PROMPTS_AT_ONCE = 1024
"""The number of prompts that a GPU decodes in a call, if its memory is sufficient: automask's whole
grid of points."""

PROMPTS_PER_MASK = 16
"""In the decoder's last layers, one mask takes about as much memory as so many prompts."""

MAX_EXACT_POINTS = 24
"""The most points in a prompt for which the exact decoder is faster than the original one."""


@dataclass(frozen=True)
class Image:
    """An embedding, and the part of decoding that all prompts on the image share."""

    embedding: Embedding
    prepared: PreparedImage

    @property
    def nbytes(self) -> int:
        """The bytes of memory that the image takes."""
        return self.embedding.features.nbytes + self.prepared.nbytes


class Decoder:
    """The decoder of one model, ready to run.

    Args:
        model: a network of any type.
        upscale: runs in place of PyTorch's upscaler, for a compiled one.

    Attributes:
        prompts_at_once: the largest number of prompts in a call of `decode`, for the sake of
            memory. `at_once` returns it for prompts of one kind.
    """

    def __init__(self, model: Network, upscale: Upscaling | None = None) -> None:
        self._model = model
        self._family = family_of(model)
        on_cpu = model.device.type == "cpu"
        self._exact = ExactDecoder(model, upscale, at_once=1 if on_cpu else None)
        self.prompts_at_once = PROMPTS_AT_ONCE if on_cpu else GPU_PROMPTS_AT_ONCE
        # It handles few numbers per prompt, in double precision, which not every device has.
        encoder = model.prompt_encoder
        self._prompt_encoder = encoder if on_cpu else copy.deepcopy(encoder).cpu()

    def at_once(self, points: int, masks: bool, whole: bool = False) -> int:
        """Return how many prompts to decode in a call.

        Args:
            points: the number of points in each prompt.
            masks: whether the prompts have a mask.
            whole: as in `decode`.
        """
        if not (whole or needs_original(points, masks)):
            return self.prompts_at_once
        return ORIGINAL_AT_ONCE if self._model.device.type == "cpu" else PROMPTS_AT_ONCE

    def prepare(self, embedding: Embedding) -> Image:
        """Compute the image's part of decoding, which is about as much work as one prompt."""
        return Image(
            embedding,
            self._exact.prepare(embedding.features, embedding.input_size, embedding.maps),
        )

    @torch.inference_mode()
    def decode(
        self,
        image: Image,
        *,
        points: tuple[torch.Tensor, torch.Tensor] | None = None,
        boxes: torch.Tensor | None = None,
        masks: torch.Tensor | None = None,
        whole: bool = False,
    ) -> Masks:
        """Decode B prompts on one image, in one run of the network.

        The tensors are on the CPU, whatever the model's device.

        Args:
            image: the image, as `prepare` returns it.
            points: (B×N×2 XY, B×N labels: 1 object, 0 background) in the input frame
                (`Embedding.to_input_frame`).
            boxes: B×4 XYXY in the input frame.
            masks: B×1×256×256 logits of that frame, like `low_res_masks`.
            whole: whether the logits beyond the image are needed, too. The exact decoder has none.
        """
        count = 0 if points is None else points[1].shape[1]
        decoded: FourMasks
        if whole or needs_original(count, masks is not None):
            decoded = decode_plain(
                self._model, image.embedding, points=points, boxes=boxes, masks=masks
            )
        else:
            padded = self._family.padded(points, boxes)
            sparse, _ = self._prompt_encoder(points=padded, boxes=boxes, masks=None)
            decoded = self._exact.decode(image.prepared, sparse.to(self._model.device))
        return self._family.choose(decoded, masks_at_once(self.prompts_at_once))


def masks_at_once(prompts_at_once: int) -> int:
    """Return how many prompts' masks fit at once on a device that decodes so many prompts."""
    return max(1, prompts_at_once // PROMPTS_PER_MASK)


def needs_original(points: int, masks: bool) -> bool:
    """Return whether these prompts are decoded by the original modules.

    The exact decoder shares the image among prompts, but a mask prompt changes the image. And its
    work grows with the square of the number of points.
    """
    return masks or points > MAX_EXACT_POINTS


@dataclass(frozen=True)
class PlainMasks:
    """The result of `decode_plain`: all masks, computed.

    Attributes:
        iou_predictions: B×4.
        masks: B×4×256×256 logits.
    """

    iou_predictions: torch.Tensor
    masks: torch.Tensor

    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        """Return C×256×256 logits of one prompt."""
        return self.masks[prompt, channels]

    def of_several(self, prompts: list[int], channels: slice) -> torch.Tensor:
        """Return K×C×256×256 logits of several prompts."""
        return self.masks[prompts, channels]


@torch.inference_mode()
def decode_plain(
    model: Network,
    embedding: Embedding,
    *,
    points: tuple[torch.Tensor, torch.Tensor] | None = None,
    boxes: torch.Tensor | None = None,
    masks: torch.Tensor | None = None,
) -> PlainMasks:
    """Like `Decoder.decode`, with the original modules. Tests compare the exact decoder with it."""
    device, family = model.device, family_of(model)
    points = family.padded(points, boxes)
    sparse, dense = model.prompt_encoder(
        points=None if points is None else (points[0].to(device), points[1].to(device)),
        boxes=None if boxes is None else boxes.to(device),
        masks=None if masks is None else masks.to(device),
    )
    low_res_masks, iou_predictions = family.plain_masks(
        model, embedding.features, embedding.maps, sparse, dense
    )
    return PlainMasks(iou_predictions, low_res_masks)
