"""Answers to prompts: boxes on an image -> a mask each (three with multimask_output).

Equal to `SamPredictor.predict` for every prompt. All prompts on one image share its embedding
and run through the decoder together, be they of one request or of several.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from .decoder import PROMPTS_AT_ONCE, Decoder, Image, single_or_three
from .features import PromptMask
from .masks import MASK_THRESHOLD, upscale
from .requests import Box, PromptRequest
from .segmenter import Segmenter


@dataclass(frozen=True)
class _Prompt:
    """One prompt of one request; `request` is its place among them."""

    request: int
    prompt_idx: int
    box: Box
    channels: slice


def predict(
    segmenter: Segmenter, image: Image, requests: Sequence[PromptRequest]
) -> list[list[PromptMask]]:
    """Masks for each request's prompts, in its order.

    Args:
        image: the image of every one of these requests.

    Raises:
        InvalidField: a request has no prompt, or one outside the image.
    """
    prompts = [
        _Prompt(place, prompt_idx, box, single_or_three(request.multimask_output))
        for place, request in enumerate(requests)
        for prompt_idx, box in enumerate(request.boxes(*image.embedding.original_size))
    ]
    at_once = max(1, min(PROMPTS_AT_ONCE, -(-len(prompts) // segmenter.threads.count)))
    batches = [prompts[i : i + at_once] for i in range(0, len(prompts), at_once)]
    per_batch = segmenter.threads.map(partial(_predict, segmenter.decoder, image), batches)
    answers: list[list[PromptMask]] = [[] for _ in requests]
    for batch, masks in zip(batches, per_batch, strict=True):
        for prompt, own in zip(batch, masks, strict=True):
            answers[prompt.request] += own
    return answers


def _predict(decoder: Decoder, image: Image, prompts: Sequence[_Prompt]) -> list[list[PromptMask]]:
    """Each prompt's masks."""
    embedding = image.embedding
    corners = np.array([prompt.box for prompt in prompts], np.float64).reshape(-1, 2, 2)
    boxes = torch.as_tensor(
        embedding.to_input_frame(corners).reshape(-1, 4),
        dtype=torch.float,
        device=embedding.features.device,
    )
    decoded = decoder.decode(image, boxes=boxes)
    answers = []
    for index, prompt in enumerate(prompts):
        low_res_masks = decoded.low_res_masks(index, prompt.channels).cpu().numpy()
        predicted_iou = decoded.iou_predictions[index, prompt.channels].tolist()
        answers.append(
            [
                PromptMask.from_full(
                    upscale(low_res_mask, embedding) > MASK_THRESHOLD,
                    predicted_iou=iou,
                    prompt_idx=prompt.prompt_idx,
                )
                for low_res_mask, iou in zip(low_res_masks, predicted_iou, strict=True)
            ]
        )
    return answers
