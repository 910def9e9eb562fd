# Preprocessing follows segment-anything's predictor.py and modeling/sam.py (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module computes the embedding of an image: the expensive step, done once per image.

Preprocessing equals `SamPredictor.set_image`: the image is resized with PIL so that its longer side
has the network's 1024 pixels, normalised, and padded at the right and the bottom.

On a CPU the network runs in OpenVINO if the archive has it exported (`openvino_parts.py`), two to
three times as fast as in PyTorch. Otherwise it runs in PyTorch, rewritten: in TinyViT each
BatchNorm is folded into its convolution, and the ViTs are those of `vit.py`. All equal the
original network up to rounding.

Nothing is stored here: an embedding is a value that serves any number of prompts, and
`samserve.embeddings` caches it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from samserve.errors import InvalidImage

from .originals import ImageEncoderViT, ResizeLongestSide, Sam
from .vit import ViT


@dataclass(frozen=True)
class Embedding:
    """The image encoder's output for one image.

    Attributes:
        features: 1×256×64×64 float tensor on the model's device.
        input_size: (height, width) of the resized image, in pixels of the network's input.
        original_size: (height, width) of the image before resizing, in pixels.
    """

    features: torch.Tensor
    input_size: tuple[int, int]
    original_size: tuple[int, int]

    def to_input_frame(self, coords: NDArray[np.float64]) -> NDArray[np.float64]:
        """Convert (…, 2) XY from pixels of the image to pixels of the network's input."""
        (in_h, in_w), (h, w) = self.input_size, self.original_size
        scale: NDArray[np.float64] = np.array([in_w / w, in_h / h])
        return coords * scale


class Encoder:
    """The encoder of one model, ready to run.

    Args:
        model: a `Sam` of any type.
        network: runs in place of the model's encoder. It takes 1×3×1024×1024 normalised pixels
            and returns 1×256×64×64 features.
        precision: the dtype in which the network computes. Pixels and features are float32 in
            any case.
    """

    def __init__(
        self,
        model: Sam,
        network: Callable[[torch.Tensor], torch.Tensor] | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._model = model
        self.device: torch.device = model.device
        self._transform = ResizeLongestSide(model.image_encoder.img_size)
        self._precision = precision
        self._network = rewritten(model.image_encoder).to(precision) if network is None else network

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        """Embed an H×W×3 uint8 RGB image.

        Raises:
            InvalidImage: the image is so thin (about 2000 times as long as wide) that its short
                side rounds to 0 pixels at the network's resolution.
        """
        height, width = image.shape[:2]
        target = self._transform.target_length
        in_h, in_w = self._transform.get_preprocess_shape(height, width, target)
        if min(in_h, in_w) < 1:
            raise InvalidImage(
                f"A {width}x{height} image is too thin: its short side vanishes when its long "
                f"side is resized to {target} pixels.",
                "b64img",
            )
        resized = torch.as_tensor(self._transform.apply_image(image), device=self.device)
        pixels = self._model.preprocess(resized.permute(2, 0, 1).contiguous()[None])
        return Embedding(self.features(pixels), (in_h, in_w), (height, width))

    @torch.inference_mode()
    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return B×256×64×64 float32 features of B×3×1024×1024 normalised pixels, on the device."""
        return self._network(pixels.to(self._precision)).float()


def rewritten(encoder: nn.Module) -> nn.Module:
    """Return a network that computes the same function of the same weights with less work."""
    return ViT(encoder) if isinstance(encoder, ImageEncoderViT) else fold_batch_norms(encoder)


def compiled_by_inductor(encoder: nn.Module, precision: torch.dtype) -> nn.Module:
    """Return `rewritten(encoder)`, compiled by PyTorch for its device at its first call.

    Compiling takes about a minute. PyTorch stores the result (in `TORCHINDUCTOR_CACHE_DIR`, or in
    the temporary folder), from which later starts load it in seconds. It is compiled for one image
    at a time, because the encoder is never called with more.
    """
    network: nn.Module = torch.compile(rewritten(encoder).to(precision), dynamic=False)  # type: ignore[assignment]
    return network


def fold_batch_norms(encoder: nn.Module) -> nn.Module:
    """Return a copy without BatchNorm and with channels last; the network itself if it has none."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return encoder
    folded = copy.deepcopy(encoder)
    for module in list(folded.modules()):
        for name, child in module.named_children():
            match list(child.children()):
                case [nn.Conv2d() as convolution, nn.BatchNorm2d() as norm]:  # TinyViT's pairs
                    setattr(module, name, fuse_conv_bn_eval(convolution, norm))
    return folded.to(memory_format=torch.channels_last)
