"""The choice among a prompt's four masks, with logits that are made for each case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from samserve.network.decoded import FirstOrThree, StableOrBest
from samserve.network.decoder import PlainMasks

SIDE = 100


def logits_of(certain: int, uncertain: int, value: float = 0.02) -> torch.Tensor:
    """Return logits with so many pixels far above the threshold, and so many at it."""
    logits = torch.full((SIDE * SIDE,), -5.0)
    logits[:certain] = 5.0
    logits[certain : certain + uncertain] = value
    return logits.view(SIDE, SIDE)


CASES: dict[str, tuple[torch.Tensor, bool]] = {
    "certain": (logits_of(1000, 0), True),
    "just stable": (logits_of(980, 20), True),
    "just unstable": (logits_of(979, 21), False),
    "uncertain background": (logits_of(979, 21, -0.02), False),
    "at the offset": (logits_of(979, 21, 0.0501), True),
    "below the offset": (logits_of(979, 21, -0.0501), True),
    "empty": (logits_of(0, 0), True),
    "uncertain only": (logits_of(0, 30), False),
}


def four_masks() -> PlainMasks:
    """Return a prompt for each case, whose best other mask is the first, second, third, …"""
    count = len(CASES)
    others = torch.arange(count * 3.0).view(count, 3, 1, 1).expand(-1, -1, SIDE, SIDE) - 4
    first = torch.stack([logits for logits, _ in CASES.values()])[:, None]
    ious = torch.full((count, 4), 0.1)
    ious[:, 0] = 0.99  # the first mask's own IoU has no part in the choice
    ious[range(count), [1 + i % 3 for i in range(count)]] = 0.5
    return PlainMasks(ious, torch.cat([first, others], 1))


EXPECTED = [0 if stable else 1 + number % 3 for number, (_, stable) in enumerate(CASES.values())]


class OfAnotherDevice:
    """Masks whose predicted IoUs say that they are on another device than the CPU."""

    class _Ious(torch.Tensor):
        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    def __init__(self, masks: PlainMasks) -> None:
        self._masks = masks
        self.iou_predictions = masks.iou_predictions.as_subclass(self._Ious)
        self.batches: list[int] = []

    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        return self._masks.low_res_masks(prompt, channels)

    def of_several(self, prompts: list[int], channels: slice) -> torch.Tensor:
        self.batches.append(len(prompts))
        return self._masks.of_several(prompts, channels)


def test_the_cases_are_those_of_sam2() -> None:
    """`MaskDecoder._dynamic_multimask_via_stability`, called without the rest of the decoder."""
    decoder_of_sam2 = pytest.importorskip("sam2.modeling.sam.mask_decoder").MaskDecoder
    decoder = decoder_of_sam2.__new__(decoder_of_sam2)
    nn.Module.__init__(decoder)
    decoder.dynamic_multimask_stability_delta = 0.05
    decoder.dynamic_multimask_stability_thresh = 0.98
    masks = four_masks()
    logits, ious = decoder._dynamic_multimask_via_stability(masks.masks, masks.iou_predictions)
    for number, channel in enumerate(EXPECTED):
        assert torch.equal(logits[number, 0], masks.masks[number, channel])
        assert ious[number, 0] == masks.iou_predictions[number, channel]


def test_a_stable_mask_or_the_best() -> None:
    chosen = StableOrBest(four_masks(), at_once=1)
    assert chosen.channels(False)[:, 0].tolist() == EXPECTED
    assert set(EXPECTED) == {0, 1, 2, 3}


@pytest.mark.parametrize("at_once", [1, 3, 100])
def test_the_same_on_another_device(at_once: int) -> None:
    masks = OfAnotherDevice(four_masks())
    assert StableOrBest(masks, at_once).channels(False)[:, 0].tolist() == EXPECTED
    assert max(masks.batches) == min(at_once, len(CASES))
    assert sum(masks.batches) == len(CASES)


@pytest.mark.parametrize("asked_first", [False, True])
def test_logits_are_those_of_the_channels(asked_first: bool) -> None:
    masks = four_masks()
    chosen = StableOrBest(masks, at_once=1)
    if asked_first:
        chosen.channels(False)
    for prompt in range(len(CASES)):
        for channels in ([0], [1], [2], [3], [0, 3], [1, 2, 3], slice(0, 4)):
            found = chosen.low_res_masks(prompt, channels)
            assert torch.equal(found, masks.low_res_masks(prompt, channels))


def test_three_masks_and_sam_1() -> None:
    masks = four_masks()
    three = np.tile([1, 2, 3], (len(CASES), 1))
    np.testing.assert_array_equal(StableOrBest(masks, 1).channels(True), three)
    np.testing.assert_array_equal(FirstOrThree(masks).channels(True), three)
    np.testing.assert_array_equal(FirstOrThree(masks).channels(False), np.zeros((len(CASES), 1)))
    none = PlainMasks(torch.empty(0, 4), torch.empty(0, 4, SIDE, SIDE))
    assert StableOrBest(none, 1).channels(False).shape == (0, 1)
