"""Automask takes the default of `pred_iou_thresh` from the family of the loaded network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samserve import segmenter
from samserve.network.decoder import Decoder
from samserve.progress import Job
from samserve.serving.requests import AutomaskRequest
from tests.support.paths import ROOT
from tests.support.sample_pictures import picture


@pytest.fixture(scope="module", params=[("vit_t", 0.88), ("sam2_t", 0.8)], ids=lambda p: p[0])
def loaded(request: pytest.FixtureRequest, sam2_t_weights: Path) -> tuple[Any, Any, float]:
    """A loaded type, a picture, and the default that its reference has."""
    model_type, default = request.param
    folder = sam2_t_weights if model_type == "sam2_t" else ROOT / "weights"
    ours = segmenter.load(model_type, folder / f"{model_type}.pt", device="cpu")
    return ours, ours.embed(picture("coins")), default


@pytest.fixture(autouse=True)
def predicted_iou(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the decoder predict an IoU of 0.85 for every mask: between the two defaults."""
    decode = Decoder.decode

    def decoded(*args: Any, **keywords: Any) -> Any:
        masks: Any = decode(*args, **keywords)
        masks.iou_predictions = torch.full_like(masks.iou_predictions, 0.85)
        return masks

    monkeypatch.setattr(Decoder, "decode", decoded)


@pytest.mark.parametrize("cut", [{}, {"tile_size": 256}], ids=str)
def test_the_library(loaded: tuple[Any, Any, float], cut: dict[str, int]) -> None:
    ours, embedded, default = loaded
    parameters = {"points_per_side": 2, "stability_score_thresh": 0.0, **cut}
    kept = ours.automask(embedded, **parameters)
    assert bool(kept) == (default < 0.85)
    assert len(ours.automask(embedded, pred_iou_thresh=None, **parameters)) == len(kept)
    assert ours.automask(embedded, pred_iou_thresh=0, **parameters)
    assert ours.automask(embedded, pred_iou_thresh=0.8, **parameters)
    assert not ours.automask(embedded, pred_iou_thresh=0.88, **parameters)


def test_a_request(loaded: tuple[Any, Any, float]) -> None:
    ours, embedded, default = loaded
    request = AutomaskRequest.parse(
        b'{"b64img": "x", "points_per_side": 2, "stability_score_thresh": 0}'
    )
    assert bool(ours.find_objects(embedded, request, Job())) == (default < 0.85)
    # samapi has the threshold of SAM 1 for all types.
    assert not ours.find_objects(embedded, request.with_defaults("samapi"), Job())
