"""vit_b with random weights through the library, against the reference's own classes.

The other two large types differ from it in numbers only, and take minutes: their loading is
tested (test_checkpoints), their arithmetic is vit_b's.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from segment_anything import SamAutomaticMaskGenerator, SamPredictor, sam_model_registry
from segment_anything.modeling import ImageEncoderViT

from samserve import automask, prompts, segmenter
from samserve.network.checkpoints import read
from samserve.network.encoder import Encoder, compiled_by_inductor
from samserve.pictures.decoding import decode_page
from samserve.pictures.picture import Picture
from samserve.serving.prompts import prompts_of
from samserve.serving.requests import AutomaskRequest, PromptRequest
from tests.support.sample_pictures import base64_png, picture
from tests.support.settings import SETTINGS

BOX = [20, 30, 70, 78]
GRID = {"points_per_side": 2, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0}


@pytest.fixture(scope="module")
def predictor(vit_b_weights: Path) -> Any:
    """The reference, the picture set."""
    model = sam_model_registry["vit_b"]()
    model.load_state_dict(read(vit_b_weights / "vit_b.pt"))
    predictor = SamPredictor(model.eval())
    predictor.set_image(picture("coins"))
    return predictor


@pytest.fixture(scope="module")
def ours(vit_b_weights: Path) -> segmenter.Segmenter:
    torch.set_num_threads(2)
    return segmenter.load("vit_b", vit_b_weights / "vit_b.pt", device="cpu")


@pytest.fixture(scope="module")
def sent() -> Picture:
    return Picture(base64_png(picture("coins")), 10**8)


def test_a_box_is_answered_as_the_reference_does(
    predictor: Any, ours: segmenter.Segmenter, sent: Picture
) -> None:
    image = ours.model.embeddings.of_picture(sent).image
    difference = (image.embedding.features - predictor.features).abs().max()
    assert difference <= 1e-4 * predictor.features.abs().max()
    assert predictor.features.std() > 0.1, "the same everywhere: it would prove nothing"
    request = PromptRequest.parse(body(bbox=BOX, multimask_output=True))
    located = prompts_of(request, image.embedding, SETTINGS.limits, decode_page)
    [packed] = prompts.predict(ours.model, image, [located])
    masks = [mask.unpacked() for mask in packed]
    expected, quality, _ = predictor.predict(box=np.array(BOX), multimask_output=True)
    assert len(masks) == 3
    for found, mask, iou in zip(masks, expected, quality, strict=True):
        assert found.predicted_iou == pytest.approx(float(iou), abs=1e-4)
        # Noise, which crosses the threshold everywhere.
        assert abs(found.area - np.count_nonzero(mask)) <= 1e-3 * mask.size
        assert found.area > 0


def test_a_grid_is_answered_as_the_reference_does(
    predictor: Any, ours: segmenter.Segmenter, sent: Picture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Automask of vit_b; both take the embedding that the other test has made."""

    def set_image(self: SamPredictor, image: Any) -> None:
        self.__dict__.update(predictor.__dict__)

    monkeypatch.setattr(SamPredictor, "set_image", set_image)
    theirs = SamAutomaticMaskGenerator(predictor.model, **GRID).generate(picture("coins"))
    request = AutomaskRequest.parse(body(**GRID))
    image = ours.model.embeddings.of_picture(sent).image
    found = [
        m.unpacked() for m in automask.generate(ours.model, image, lambda: sent.pixels, request)
    ]
    assert len(found) == len(theirs) > 0
    for mask, expected in zip(found, theirs, strict=True):
        assert mask.predicted_iou == pytest.approx(expected["predicted_iou"], abs=1e-4)
        assert mask.point_coords == expected["point_coords"]
        assert abs(mask.area - expected["area"]) <= 1e-3 * picture("coins").size


@pytest.mark.parametrize(
    ("precision", "least", "most"), [(torch.bfloat16, 1e-4, 0.05), (torch.float16, 1e-5, 0.005)]
)
def test_half_precision_moves_the_embedding_a_little(
    model: Any, precision: torch.dtype, least: float, most: float
) -> None:
    """Full precision outside, half within."""
    small = with_small_vit(model)
    full = Encoder(small).encode(picture("coins")).features
    half = Encoder(small, precision=precision).encode(picture("coins")).features
    assert half.dtype == torch.float32
    difference = (half - full).abs().mean() / full.abs().mean()
    assert least < difference < most


@pytest.mark.needs("g++")  # PyTorch's inductor compiles C++
def test_compiling_changes_nothing(model: Any) -> None:
    """As for a GPU, on the CPU."""
    small = with_small_vit(model)
    plain = Encoder(small).encode(picture("coins")).features
    network = compiled_by_inductor(small, torch.float32)
    compiled = Encoder(small, network).encode(picture("coins")).features
    assert (compiled - plain).abs().max() < 1e-4


def with_small_vit(model: Any) -> Any:
    """The model with a small ViT in the place of its encoder."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        depth=2, embed_dim=96, num_heads=4, out_chans=256, global_attn_indexes=(1,),
        use_rel_pos=True, window_size=14, qkv_bias=True,
    ).eval()  # fmt: skip
    encoder.requires_grad_(False)
    return type(model)(encoder, model.prompt_encoder, model.mask_decoder)


def body(**fields: Any) -> bytes:
    return json.dumps({"type": "vit_b", "b64img": "", **fields}).encode()
