"""This module turns the prompts of a request into the library's, checked against the image."""

from __future__ import annotations

import numpy as np

from samserve.masks.low_res_logits import from_base64
from samserve.network.encoder import Embedding
from samserve.pictures.decoding import Decode
from samserve.pictures.drawn_masks import mask_input
from samserve.prompts import Prompt, check_inside

from .budgets import check_masks
from .forms import MASK_PART
from .model_settings import Limits
from .requests import PromptRequest


def prompts_of(
    request: PromptRequest,
    embedding: Embedding,
    limits: Limits,
    decode: Decode,
) -> list[Prompt]:
    """Return the request's prompts in its order.

    Args:
        embedding: the embedding of the request's image.
        limits: what the request may ask for.
        decode: decodes drawn masks.

    Raises:
        SamserveError: there is no prompt, a contradictory one, or one that does not fit the image.
    """
    prompts = []
    named = request.each_prompt()
    check_masks(len(named), request.multimask_output, embedding.original_size, limits)
    for path, fields in named:
        box = None if fields.bbox is None else np.array(fields.bbox, np.float64)
        coords = None if fields.point_coords is None else np.array(fields.point_coords, np.float64)
        labels, several = fields.point_labels, request.multimask_output
        check_inside(Prompt(box, coords, labels), embedding.original_size, path, box_name="bbox")
        logits = None
        if fields.b64mask is not None:
            logits = mask_input(
                fields.b64mask,
                embedding.original_size,
                embedding.input_size,
                limits.max_image_pixels,
                "mask" if fields.b64mask.startswith(MASK_PART) else f"{path}b64mask",
                decode,
            )
        elif fields.mask_input is not None:
            logits = from_base64(fields.mask_input.data, f"{path}mask_input.data")
        prompts.append(Prompt(box, coords, labels, logits, several, request.return_logits))
    return prompts
