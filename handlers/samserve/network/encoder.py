"""Image -> embedding: the expensive step, once per image.

Preprocessing is the reference's (`SamPredictor.set_image`): the longer side resized to
the network's 1024 pixels as PIL does it, normalised, padded at the right and bottom.

On a CPU the network runs in OpenVINO where the archive brings it compiled for that
(`compiled.py`), two to three times as fast as PyTorch; else in PyTorch, rewritten: TinyViT
with each BatchNorm folded into its convolution, the ViTs as `vit.py` says. All give the
reference's numbers up to rounding.

Remembers nothing: an embedding is a value, good for any number of prompts, and
`embeddings.py` keeps it.
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


class Encoder:
    """The encoder of one model, ready to run.

    Args:
        model: a `Sam` of any type.
        network: 1×3×1024×1024 normalised pixels -> 1×256×64×64 features, in the place of
            the model's own.
        precision: what the network computes in; pixels and features are float32 all the same.
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
            InvalidImage: so thin that nothing of its short side is left at the network's
                resolution (longer than about 2000 times its width).
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
        """B×3×1024×1024 normalised pixels on the device -> B×256×64×64 float32 there."""
        return self._network(pixels.to(self._precision)).float()


def rewritten(encoder: nn.Module) -> nn.Module:
    """The same function of the same weights, done with less work: TinyViT's or a ViT's."""
    return ViT(encoder) if isinstance(encoder, ImageEncoderViT) else fold_batch_norms(encoder)


def compiled_by_inductor(encoder: nn.Module, precision: torch.dtype) -> nn.Module:
    """`rewritten`, compiled by PyTorch for its device when it is first called: a minute or so.

    What was compiled is kept on disk (`TORCHINDUCTOR_CACHE_DIR`, or in the temporary folder), from
    which later starts have it in seconds. For one image at a time, the only shape there is.
    """
    network: nn.Module = torch.compile(rewritten(encoder).to(precision), dynamic=False)  # type: ignore[assignment]
    return network


def fold_batch_norms(encoder: nn.Module) -> nn.Module:
    """The same network without BatchNorm, and with channels last; itself if it has none."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return encoder
    folded = copy.deepcopy(encoder)
    for module in list(folded.modules()):
        for name, child in module.named_children():
            match list(child.children()):
                case [nn.Conv2d() as convolution, nn.BatchNorm2d() as norm]:  # TinyViT's pairs
                    setattr(module, name, fuse_conv_bn_eval(convolution, norm))
    return folded.to(memory_format=torch.channels_last)
