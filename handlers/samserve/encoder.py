"""Image -> embedding: the expensive step, once per image.

Preprocessing is the reference's (`SamPredictor.set_image`): the longer side resized to
the network's 1024 pixels as PIL does it, normalised, padded at the right and bottom.

Holds no state: an embedding is a value, good for any number of prompts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from mobile_sam.modeling import Sam
from mobile_sam.utils.transforms import ResizeLongestSide
from numpy.typing import NDArray

from .errors import InvalidImage


@dataclass(frozen=True)
class Embedding:
    """What the network knows of one image.

    Attributes:
        features: 1×256×64×64 float tensor on the model's device.
        input_size: (height, width) of the resized image, in pixels of the network's input.
        original_size: (height, width) of the image itself, in pixels.
    """

    features: torch.Tensor
    input_size: tuple[int, int]
    original_size: tuple[int, int]

    def to_input_frame(self, coords: NDArray[np.float64]) -> NDArray[np.float64]:
        """(…, 2) XY from pixels of the image to pixels of the network's input."""
        (in_h, in_w), (h, w) = self.input_size, self.original_size
        scale: NDArray[np.float64] = np.array([in_w / w, in_h / h])
        return coords * scale


@torch.inference_mode()
def encode(model: Sam, image: NDArray[np.uint8]) -> Embedding:
    """Embed an H×W×3 uint8 RGB image.

    Raises:
        InvalidImage: so thin that nothing of its short side is left at the network's
            resolution (longer than about 2000 times its width).
    """
    transform = ResizeLongestSide(model.image_encoder.img_size)
    height, width = image.shape[:2]
    in_h, in_w = transform.get_preprocess_shape(height, width, transform.target_length)
    if min(in_h, in_w) < 1:
        raise InvalidImage(
            f"A {width}x{height} image is too thin: its short side vanishes when its long "
            f"side is resized to {transform.target_length} pixels.",
            "b64img",
        )
    resized = torch.as_tensor(transform.apply_image(image), device=model.device)
    pixels = resized.permute(2, 0, 1).contiguous()[None]
    features = model.image_encoder(model.preprocess(pixels))
    return Embedding(features, (in_h, in_w), (height, width))
