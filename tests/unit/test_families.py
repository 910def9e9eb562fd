"""Automask takes the default of `pred_iou_thresh` from the family of the loaded network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from samserve import automask, segmenter
from samserve.crops import Crop
from samserve.parameters import AutomaskParameters
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


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[float | None]:
    """The thresholds that the crops got."""
    thresholds: list[float | None] = []

    class Recorder(Crop):
        def masks(self, points: Any) -> list[Any]:
            thresholds.append(self.parameters.pred_iou_thresh)
            return []

    monkeypatch.setattr(automask, "Crop", Recorder)
    return thresholds


def test_the_library(loaded: tuple[Any, Any, float], used: list[float | None]) -> None:
    ours, embedded, default = loaded
    ours.automask(embedded, points_per_side=1)
    ours.automask(embedded, points_per_side=1, pred_iou_thresh=None)
    ours.automask(embedded, points_per_side=1, tile_size=256)  # four tiles
    ours.automask(embedded, points_per_side=1, pred_iou_thresh=0.5)
    ours.automask(embedded, points_per_side=1, pred_iou_thresh=0)
    *absent, sent, zero = used
    assert len(absent) > 3
    assert set(absent) == {default}
    assert (sent, zero) == (0.5, 0)


def test_a_request(loaded: tuple[Any, Any, float], used: list[float | None]) -> None:
    ours, embedded, default = loaded
    request = AutomaskRequest.parse(b'{"b64img": "x", "points_per_side": 1}')
    for asked in (request, request.with_defaults("samapi")):
        ours.find_objects(embedded, asked, Job())
    assert used == [default, 0.88]
    assert AutomaskParameters().pred_iou_thresh is None
