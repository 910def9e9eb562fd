"""What several tests share: real pictures, the real model, and a picture as base64."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
from numpy.typing import NDArray
from PIL import Image

from samserve.checkpoints import load_model
from samserve.decoder import Decoder
from samserve.embeddings import EmbeddingCache
from samserve.encoder import Encoder
from samserve.segmenter import Segmenter
from samserve.threads import Threads

ROOT = Path(__file__).resolve().parent.parent

Picture = NDArray[np.uint8]


def picture(name: str) -> Picture:
    """One of scikit-image's photographs, H×W×3 uint8 RGB."""
    pixels = getattr(skimage.data, name)()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def base64_png(pixels: NDArray[Any]) -> str:
    """What a client puts into `b64img`."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def segmenter_of(model: Any) -> Segmenter:
    """All that answers with this model, remembering nothing."""
    encoder, decoder = Encoder(model), Decoder(model)
    embeddings = EmbeddingCache(encoder, decoder, identity="", memory_bytes=0, store=None)
    return Segmenter(embeddings, decoder, model.device, "pytorch", Threads(2))


@pytest.fixture(scope="session")
def model() -> Any:
    """MobileSAM with the weights that `make weights` fetched."""
    torch.set_num_threads(2)
    return load_model("vit_t", ROOT / "weights" / "vit_t.pt", torch.device("cpu"))


@pytest.fixture(scope="session")
def reference_masks(model: Any) -> Callable[..., tuple[NDArray[np.bool_], list[float]]]:
    """`SamPredictor`'s masks and predicted IoUs for one box, each picture encoded once."""
    from mobile_sam import SamPredictor

    predictors: dict[str, Any] = {}

    def predict(name: str, bbox: list[float], multimask_output: bool = False) -> Any:
        if name not in predictors:
            predictors[name] = SamPredictor(model)
            predictors[name].set_image(picture(name))
        masks, quality, _ = predictors[name].predict(
            box=np.array(bbox), multimask_output=multimask_output
        )
        return masks, quality.tolist()

    return predict
