"""This module says in what SAM 1 and SAM 2 differ. All other code is the same for both.

                     SAM 1 and MobileSAM                    SAM 2 and 2.1
    input            longer side 1024, the rest is padding  1024×1024, without the aspect ratio
    resized by       Pillow, to bytes                       PyTorch, to floats, with antialiasing
    embedding        256×64×64                              the same, and two finer maps
    output tokens    predicted IoU, four masks              one more: is the object there?
    a box alone      two tokens                             two tokens, and one of padding
    one mask         the first of four                      the first, if it is stable
    to full size     256² → 1024² → the image               256² → the image

`family_of` returns the family of a network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from samserve.errors import InvalidImage

from .batch_norms import fold_batch_norms
from .decoded import FirstOrThree, FourMasks, Masks, StableOrBest
from .hiera import Hiera, as_maps
from .originals import ImageEncoderViT, ResizeLongestSide, Sam
from .sam2 import Sam2
from .vit import ViT

NETWORK_SIDE = 1024
"""Width and height of the network's input in pixels."""

Network: TypeAlias = "Sam | Sam2"

Points: TypeAlias = "tuple[torch.Tensor, torch.Tensor]"
"""B×N×2 XY in the input frame, and B×N labels: 1 object, 0 background, -1 padding."""


class Family(ABC):
    """A Family is one of the two architectures.

    Attributes:
        name: `sam` or `sam2`.
        map_shapes: the shapes of the maps that an embedding has besides its features.
        two_steps: whether masks are interpolated to the input's size first, and then to the
            image's.
        most_logits: the largest magnitude of the logits that a caller gets; None: any.
        pred_iou_thresh: automask keeps masks whose predicted IoU is above this by default.
    """

    name: str
    map_shapes: tuple[tuple[int, int, int], ...] = ()
    two_steps: bool
    most_logits: float | None = None
    pred_iou_thresh: float

    def limited(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return logits of a mask as the reference gives them to a caller."""
        limit = self.most_logits
        return logits if limit is None else logits.clip(-limit, limit)

    @abstractmethod
    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the (height, width) to which an image is resized, in pixels of the input.

        Raises:
            InvalidImage: a side would vanish.
        """

    @abstractmethod
    def preprocess(self, image: NDArray[np.uint8], network: Any) -> torch.Tensor:
        """Return the 1×3×1024×1024 input of the encoder for an H×W×3 uint8 RGB image."""

    @abstractmethod
    def to_input_frame(
        self, coords: NDArray[np.float64], input_size: tuple[int, int], size: tuple[int, int]
    ) -> NDArray[Any]:
        """Convert (…, 2) XY from pixels of an image of this size to pixels of the input."""

    @abstractmethod
    def encoder(self, network: Any) -> nn.Module:
        """Return a module that runs the image encoder with less work than the original."""

    @abstractmethod
    def output_tokens(self, decoder: Any) -> torch.Tensor:
        """Return the T×256 tokens before the prompt's. The last five are IoU and four masks."""

    @abstractmethod
    def padded(self, points: Points | None, boxes: torch.Tensor | None) -> Points | None:
        """Return the points for segment-anything's prompt encoder, with the family's padding."""

    @abstractmethod
    def choose(self, masks: FourMasks, at_once: int) -> Masks:
        """Return these masks with the family's choice of one or three of four.

        Args:
            at_once: the number of prompts whose masks fit a GPU's memory at once.
        """

    def plain_masks(
        self,
        network: Network,
        features: torch.Tensor,
        maps: tuple[torch.Tensor, ...],
        sparse: torch.Tensor,
        dense: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B×4×256×256 logits and B×4 predicted IoUs, by the original modules."""
        logits, iou_predictions = network.mask_decoder.predict_masks(
            image_embeddings=features,
            image_pe=network.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            **self._maps(maps),
        )
        return logits, iou_predictions

    def _maps(self, maps: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        return {}


class SamFamily(Family):
    """SAM 1 and MobileSAM: `segment_anything.SamPredictor`."""

    name = "sam"
    two_steps = True
    pred_iou_thresh = 0.88
    _transform = ResizeLongestSide(NETWORK_SIDE)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        in_h, in_w = self._transform.get_preprocess_shape(height, width, NETWORK_SIDE)
        if min(in_h, in_w) < 1:
            raise InvalidImage(
                f"A {width}x{height} image is too thin: its short side vanishes when its long "
                f"side is resized to {NETWORK_SIDE} pixels.",
                "b64img",
            )
        return in_h, in_w

    def preprocess(self, image: NDArray[np.uint8], network: Any) -> torch.Tensor:
        resized = torch.as_tensor(self._transform.apply_image(image), device=network.device)
        pixels: torch.Tensor = network.preprocess(resized.permute(2, 0, 1).contiguous()[None])
        return pixels

    def to_input_frame(
        self, coords: NDArray[np.float64], input_size: tuple[int, int], size: tuple[int, int]
    ) -> NDArray[Any]:
        scale: NDArray[np.float64] = np.array(input_size[::-1]) / np.array(size[::-1])
        return coords * scale

    def encoder(self, network: Any) -> nn.Module:
        encoder = network.image_encoder
        return ViT(encoder) if isinstance(encoder, ImageEncoderViT) else fold_batch_norms(encoder)

    def output_tokens(self, decoder: Any) -> torch.Tensor:
        return torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])

    def padded(self, points: Points | None, boxes: torch.Tensor | None) -> Points | None:
        return points  # the prompt encoder pads points without a box

    def choose(self, masks: FourMasks, at_once: int) -> Masks:
        return FirstOrThree(masks)


class Sam2Family(Family):
    """SAM 2 and 2.1: `sam2.sam2_image_predictor.SAM2ImagePredictor`."""

    name = "sam2"
    map_shapes = ((64, 64, 256), (64, 64, 512))
    two_steps = False
    pred_iou_thresh = 0.8
    most_logits = 32.0
    _mean = (0.485, 0.456, 0.406)
    _deviation = (0.229, 0.224, 0.225)

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return NETWORK_SIDE, NETWORK_SIDE

    def preprocess(self, image: NDArray[np.uint8], network: Any) -> torch.Tensor:
        device, side = network.device, NETWORK_SIDE
        channels = []
        for channel, mean, deviation in zip(
            np.moveaxis(image, 2, 0), self._mean, self._deviation, strict=True
        ):
            # One channel at a time: floats take four times the memory of the picture.
            pixels = torch.tensor(channel, device=device)[None, None].float().div_(255)
            resized = F.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
            channels.append(resized.sub_(mean).div_(deviation))
        return torch.cat(channels, dim=1)

    def to_input_frame(
        self, coords: NDArray[np.float64], input_size: tuple[int, int], size: tuple[int, int]
    ) -> NDArray[Any]:
        # In single precision, and in this order, as the reference does.
        shares = coords.astype(np.float32) / np.array(size[::-1], np.float32)
        return shares * np.float32(NETWORK_SIDE)

    def encoder(self, network: Any) -> nn.Module:
        return Hiera(network)

    def output_tokens(self, decoder: Any) -> torch.Tensor:
        tokens: torch.Tensor = decoder.output_tokens()
        return tokens

    def padded(self, points: Points | None, boxes: torch.Tensor | None) -> Points | None:
        if boxes is None:
            return points  # the prompt encoder pads points without a box
        count = len(boxes)
        coords, labels = points or (boxes.new_empty(count, 0, 2), boxes.new_empty(count, 0))
        # The place of padding has no effect.
        return (
            torch.cat([coords, coords.new_zeros(count, 1, 2)], 1),
            torch.cat([labels, labels.new_full((count, 1), -1)], 1),
        )

    def choose(self, masks: FourMasks, at_once: int) -> Masks:
        return StableOrBest(masks, at_once)

    def _maps(self, maps: tuple[torch.Tensor, ...]) -> dict[str, Any]:
        coarse, fine = maps
        return {"high_res_features": as_maps(coarse, fine)}


SAM, SAM2 = SamFamily(), Sam2Family()


def family_of(network: Any) -> Family:
    """Return the family of a network: a `segment_anything` or `mobile_sam` one, or a `Sam2`."""
    return SAM2 if isinstance(network, Sam2) else SAM
