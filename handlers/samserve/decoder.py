"""Embedding + prompts -> mask logits: SAM's prompt encoder and mask decoder.

Masks leave the network at 256×256 (`low_res_masks`); `upscale` brings those worth it to
the image's own size. Thresholds nothing and chooses nothing: that is the callers' part.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from mobile_sam.modeling import Sam
from torch.nn import functional as F

from .encoder import Embedding

MASK_THRESHOLD = 0.0
"""A pixel is of the object where its logit is above this (`Sam.mask_threshold`)."""

_PIXELS_AT_ONCE = 2**25  # 128 MiB of float32 logits


@torch.inference_mode()
def decode(
    model: Sam,
    embedding: Embedding,
    *,
    points: tuple[torch.Tensor, torch.Tensor] | None = None,
    boxes: torch.Tensor | None = None,
    multimask_output: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks for B prompts on one image, in one run of the network.

    Args:
        points: (B×N×2 XY, B×N labels: 1 object, 0 background) in the input frame
            (`Embedding.to_input_frame`).
        boxes: B×4 XYXY, in the input frame.
        multimask_output: the three masks for an ambiguous prompt (C=3), or the one (C=1).

    Returns:
        `low_res_masks`, B×C×256×256 logits, and `iou_predictions`, B×C.
    """
    sparse, dense = model.prompt_encoder(points=points, boxes=boxes, masks=None)
    low_res_masks, iou_predictions = model.mask_decoder(
        image_embeddings=embedding.features,
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask_output,
    )
    return low_res_masks, iou_predictions


@torch.inference_mode()
def upscale(
    model: Sam, low_res_masks: torch.Tensor, embedding: Embedding
) -> Iterator[torch.Tensor]:
    """N×256×256 logits -> logits in the image's own H×W pixels, padding removed.

    The reference's two bilinear steps (`Sam.postprocess_masks`), so that the thresholded
    mask is its mask. A few masks at a time, K×H×W in the order given, so that memory
    stays bounded whatever the number of masks and the size of the image.
    """
    side = model.image_encoder.img_size
    in_h, in_w = embedding.input_size
    height, width = embedding.original_size
    at_once = max(1, _PIXELS_AT_ONCE // max(height * width, side * side))
    for chunk in torch.split(low_res_masks[:, None], at_once):
        logits = F.interpolate(chunk, (side, side), mode="bilinear")[..., :in_h, :in_w]
        yield F.interpolate(logits, (height, width), mode="bilinear")[:, 0]
