"""This module computes the embedding of an image: the expensive step, done once per image.

`families.py` says how an image becomes the network's input.

On a CPU the network runs in OpenVINO if the archive has it exported (`openvino_parts.py`), two to
three times as fast as in PyTorch. Otherwise PyTorch runs a network that does less work than the
original one: `batch_norms.py` changes TinyViT, `vit.py` has the ViTs, and `hiera.py` has SAM 2's
encoder. All of them equal the original network up to rounding.

Nothing is stored here: an embedding is a value that serves any number of prompts, and
`samserve.embeddings` caches it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .families import SAM, Family, Network, family_of


@dataclass(frozen=True)
class Embedding:
    """The image encoder's output for one image.

    Attributes:
        features: 1×256×64×64 float tensor on the model's device.
        input_size: (height, width) of the resized image, in pixels of the network's input.
        original_size: (height, width) of the image before resizing, in pixels.
        family: the architecture of the network, which knows how the image was resized.
        maps: the finer maps that SAM 2's upscaler adds: 64×64×256 and 64×64×512, float.
    """

    features: torch.Tensor
    input_size: tuple[int, int]
    original_size: tuple[int, int]
    family: Family = SAM
    maps: tuple[torch.Tensor, ...] = ()

    def to_input_frame(self, coords: NDArray[np.float64]) -> NDArray[Any]:
        """Convert (…, 2) XY from pixels of the image to pixels of the network's input."""
        return self.family.to_input_frame(coords, self.input_size, self.original_size)


class Encoder:
    """The encoder of one model, ready to run.

    Args:
        model: a network of any type.
        network: runs in place of the model's encoder. It takes 1×3×1024×1024 normalised pixels,
            and returns 1×256×64×64 features, or with SAM 2 a tuple of them and the maps.
        precision: the dtype in which the network computes. Pixels and features are float32 in
            any case.
    """

    def __init__(
        self,
        model: Network,
        network: Callable[[torch.Tensor], Any] | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        self._model = model
        self.device: torch.device = model.device
        self.family = family_of(model)
        self._precision = precision
        self._network = self.family.encoder(model).to(precision) if network is None else network

    @torch.inference_mode()
    def encode(self, image: NDArray[np.uint8]) -> Embedding:
        """Embed an H×W×3 uint8 RGB image.

        Raises:
            InvalidImage: the image is so thin (about 2000 times as long as wide) that its short
                side rounds to 0 pixels at the network's resolution.
        """
        size = (image.shape[0], image.shape[1])
        input_size = self.family.input_size(*size)
        pixels = self.family.preprocess(image, self._model)
        features, *maps = self.outputs(pixels)
        return Embedding(features, input_size, size, self.family, tuple(part[0] for part in maps))

    @torch.inference_mode()
    def outputs(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the network's outputs in float32, on the device.

        Args:
            pixels: B×3×1024×1024 normalised pixels.

        Returns:
            B×256×64×64 features, and with SAM 2 the maps, B×64×64×256 and B×64×64×512.
        """
        outputs = self._network(pixels.to(self._precision))
        parts = (outputs,) if isinstance(outputs, torch.Tensor) else outputs
        return tuple(part.float() for part in parts)


def compiled_by_inductor(model: Network, precision: torch.dtype) -> nn.Module:
    """Return the encoder, compiled by PyTorch for its device at its first call.

    Compiling takes about a minute. PyTorch stores the result (in `TORCHINDUCTOR_CACHE_DIR`, or in
    the temporary folder), from which later starts load it in seconds. It is compiled for one image
    at a time, because the encoder is never called with more.
    """
    encoder = family_of(model).encoder(model).to(precision)
    network: nn.Module = torch.compile(encoder, dynamic=False)  # type: ignore[assignment]
    return network
