"""vit_t's weights with one change that moves the outlines, and the reference's mask with them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from mobile_sam import SamPredictor

from samserve.network.checkpoints import model_from
from tests.support.bodies import BOX
from tests.support.paths import ROOT
from tests.support.sample_pictures import picture

"""The first coin of scikit-image's picture `coins`."""


def changed_weights() -> dict[str, torch.Tensor]:
    """Return the changed state dict."""
    state: dict[str, torch.Tensor] = torch.load(ROOT / "weights" / "vit_t.pt", weights_only=True)
    key = "mask_decoder.output_upscaling.3.bias"
    return {**state, key: state[key] + 0.1}


def reference_mask(weights: dict[str, torch.Tensor]) -> Any:
    """Return the reference's mask of the first coin with these weights, H×W bool."""
    predictor = SamPredictor(model_from("vit_t", weights, "changed"))
    predictor.set_image(picture("coins"))
    masks, _, _ = predictor.predict(box=np.array(BOX), multimask_output=False)
    return masks[0]
