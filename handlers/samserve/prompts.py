"""One answer to one prompt: boxes on an image -> a mask each (three with multimask_output).

Equal to `SamPredictor.predict` for every prompt; all prompts share one embedding and run
through the decoder together.
"""

from __future__ import annotations

import numpy as np
import torch
from mobile_sam.modeling import Sam
from numpy.typing import NDArray

from .decoder import MASK_THRESHOLD, decode, upscale
from .encoder import encode
from .features import PromptMask
from .requests import PromptRequest

PROMPTS_PER_BATCH = 32
"""Prompts decoded at once; about 30 MB of memory each."""


def predict(model: Sam, image: NDArray[np.uint8], request: PromptRequest) -> list[PromptMask]:
    """Masks for each of the request's prompts, in its order.

    Args:
        image: H×W×3 uint8 RGB.

    Raises:
        InvalidField: no prompt, or one outside the image.
        InvalidImage: too thin to encode.
    """
    boxes = np.array(request.boxes(*image.shape[:2]))
    embedding = encode(model, image)
    masks: list[PromptMask] = []
    for start in range(0, len(boxes), PROMPTS_PER_BATCH):
        corners = boxes[start : start + PROMPTS_PER_BATCH].reshape(-1, 2, 2)
        low_res_masks, iou_predictions = decode(
            model,
            embedding,
            boxes=torch.as_tensor(
                embedding.to_input_frame(corners).reshape(-1, 4),
                dtype=torch.float,
                device=model.device,
            ),
            multimask_output=request.multimask_output,
        )
        per_prompt = iou_predictions.shape[1]
        predicted_iou = iou_predictions.flatten().tolist()
        for chunk in upscale(model, low_res_masks.flatten(0, 1), embedding):
            for mask in (chunk > MASK_THRESHOLD).cpu().numpy():
                index = len(masks)
                masks.append(
                    PromptMask.from_full(
                        mask,
                        predicted_iou=predicted_iou[index - start * per_prompt],
                        prompt_idx=index // per_prompt,
                    )
                )
    return masks
