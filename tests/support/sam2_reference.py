"""The package `sam2`, to which the tests compare SAM 2's answers, with the same random weights."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import samserve
from samserve.network.sam2 import is_video_part
from samserve.segmenter import EmbeddedPicture, Segmenter
from tests.support import random_weights
from tests.support.sample_pictures import picture

CONFIGS = {"sam2_t": "t", "sam2_s": "s", "sam2_bp": "b+", "sam2_l": "l"}

PICTURES: dict[str, NDArray[np.uint8]] = {
    "wide": np.ascontiguousarray(picture("coffee")[100:197, 50:351]),
    "a strip": np.ascontiguousarray(picture("rocket").transpose(1, 0, 2)[:, 200:240][:640]),
    "large": np.tile(picture("astronaut"), (2, 3, 1))[:1000, :1500],
    "grey": picture("coins")[:200, :160],
    "tiny": np.ascontiguousarray(picture("chelsea")[100:109, 150:159]),
}


@dataclass(frozen=True)
class Pair:
    """Two programs with the same weights: ours, and the reference.

    Attributes:
        segmenter: ours, as `samserve.load` returns it.
        reference: `sam2_image_predictor.SAM2ImagePredictor`.
    """

    segmenter: Segmenter
    reference: Any

    def see(self, image: NDArray[np.uint8]) -> EmbeddedPicture:
        """Let both programs encode the picture."""
        self.reference.set_image(image)
        return self.segmenter.embed(image)


def reference_network(
    model_type: str, weights: Mapping[str, torch.Tensor], version: str = "2.1"
) -> Any:
    """Return `sam2`'s own network with these weights, on the CPU."""
    name = f"sam{version}" if version == "2.1" else "sam2"
    config = f"configs/{name}/{name}_hiera_{CONFIGS[model_type]}.yaml"
    with _old_ways():
        from sam2.build_sam import build_sam2

        network = build_sam2(config, None, device="cpu")
    unused = network.load_state_dict(weights, strict=False)
    assert not unused.unexpected_keys
    assert all(map(is_video_part, unused.missing_keys))
    return network


def reference_predictor(network: Any) -> Any:
    with _old_ways():
        from sam2.sam2_image_predictor import SAM2ImagePredictor

        return SAM2ImagePredictor(network)


def reference_generator(network: Any, **parameters: Any) -> Any:
    with _old_ways():
        from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator

        return SAM2AutomaticMaskGenerator(network, **parameters)


@contextmanager
def _old_ways() -> Iterator[None]:
    """Let `sam2` use what PyTorch calls deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def pair(model_type: str, folder: Path, sparse: float = 0.0) -> Pair:
    """Return both programs with lively random weights, which are written into the folder."""
    weights = random_weights.lively(model_type, sparse=sparse)
    file = folder / f"{model_type}.pt"
    torch.save({"model": weights}, file)
    ours = samserve.load(model_type, file, device="cpu")
    return Pair(ours, reference_predictor(reference_network(model_type, weights)))
