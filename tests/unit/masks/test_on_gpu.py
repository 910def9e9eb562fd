"""Masks scored many at once, as on a GPU, against those scored one by one, as on a CPU."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from samserve import automask
from samserve.masks.full_size import FullSize
from samserve.masks.on_gpu import scored
from samserve.network.decoder import PlainMasks, masks_at_once
from samserve.network.encoder import Embedding
from samserve.pictures.picture import Picture
from samserve.serving.requests import AutomaskRequest
from tests.support.sample_pictures import base64_png, picture
from tests.support.segmenters import segmenter_of


@pytest.fixture(scope="module")
def decoded() -> PlainMasks:
    """Logits of seven prompts: a blob here and there, smooth as a network's."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(7, 4, 12, 12, generator=generator)
    masks = torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic") * 8
    return PlainMasks(torch.rand(7, 4, generator=generator), masks)


@pytest.mark.parametrize("at_once", [1, 3, 64])
@pytest.mark.parametrize("size", [(683, 1000), (301, 203)])
def test_equal_to_one_by_one(
    decoded: PlainMasks, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], at_once: int
) -> None:
    monkeypatch.setattr("samserve.masks.on_gpu.PIXELS_AT_ONCE", 2 * size[0] * size[1])
    scale = 1024 / max(size)
    in_size = (round(size[0] * scale), round(size[1] * scale))
    embedding = Embedding(torch.zeros(1), in_size, size)
    wanted = [(0, 1), (0, 3), (1, 2), (3, 1), (3, 2), (3, 3), (6, 0)]
    expected = [FullSize(embedding).mask(decoded.masks[mask].numpy(), 1.0) for mask in wanted]
    scores = [float(mask.stability_score) for mask in expected]
    threshold = sum(sorted(scores)[2:4]) / 2
    found = list(scored(decoded, wanted, embedding, 1.0, threshold, at_once))
    assert [mask.index for mask in found] == [i for i in range(7) if scores[i] > threshold]
    assert len(found) == 4
    for index, mask in ((one.index, one.mask) for one in found):
        assert mask.stability_score == pytest.approx(scores[index], abs=1e-5)
        assert mask.box == expected[index].box
        # Two ways to interpolate, which round apart.
        differing = np.count_nonzero(mask.pixels() != expected[index].pixels())
        assert differing <= 1e-6 * size[0] * size[1]


def test_none_is_stable_enough(decoded: PlainMasks) -> None:
    embedding = Embedding(torch.zeros(1), (1024, 1024), (90, 90))
    assert not list(scored(decoded, [(0, 1)], embedding, 1.0, 1.1, 1))
    assert not list(scored(decoded, [], embedding, 1.0, 0.5, 1))


def test_automask_is_the_same_either_way(model: Any) -> None:
    """The way of a GPU, walked on a CPU: where the device is asked, it says it is none."""
    pixels = picture("coins")
    request = AutomaskRequest.parse(_body(pixels, points_per_side=4))
    segmenter = segmenter_of(model)
    sent = Picture(request.b64img, 10**8)
    image = segmenter.model.embeddings.of_picture(sent).image
    expected = [
        m.unpacked()
        for m in automask.generate(segmenter.model, image, lambda: sent.pixels, request)
    ]
    elsewhere = replace(segmenter.model, device=torch.device("meta"))
    elsewhere.decoder.prompts_at_once = 1024
    found = [
        m.unpacked() for m in automask.generate(elsewhere, image, lambda: sent.pixels, request)
    ]
    assert len(found) == len(expected) > 3
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.point_coords == theirs.point_coords
        assert abs(ours.area - theirs.area) <= 2
        assert ours.stability_score == pytest.approx(theirs.stability_score, abs=1e-3)
        assert ours.predicted_iou == pytest.approx(theirs.predicted_iou, abs=1e-5)


def test_how_many_masks_are_made_at_once() -> None:
    assert [masks_at_once(n) for n in (1024, 64, 8)] == [64, 4, 1]


def _body(pixels: Any, **fields: Any) -> bytes:
    return json.dumps({"type": "vit_t", "b64img": base64_png(pixels), **fields}).encode()
