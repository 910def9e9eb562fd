"""Masks at the image's own size, against the reference's interpolation and score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mobile_sam.utils.amg import calculate_stability_score
from numpy.typing import NDArray
from torch.nn import functional as F

from samserve.boxes import EMPTY, Box
from samserve.masks import full_size as module
from samserve.masks.compact import CellMask, CompactMask, DeferredMask, PackedMask
from samserve.masks.full_size import FullSize, Logits
from samserve.network.encoder import Embedding
from samserve.network.exact_decoder import embedded


def embedding(height: int, width: int) -> Embedding:
    """Of no image, but as large as one."""
    scale = 1024 / max(height, width)
    size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    return Embedding(torch.zeros(1), size, (height, width))


def smooth_logits(seed: int, smoothness: int = 9) -> Logits:
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(seed))
    smooth = F.avg_pool2d(noise, smoothness, 1, smoothness // 2) * 5 * smoothness
    return np.asarray(smooth[0, 0].numpy(), np.float32)


def reference_upscale(low_res_mask: Logits, image: Embedding) -> torch.Tensor:
    """`Sam.postprocess_masks`."""
    masks = torch.from_numpy(low_res_mask)[None, None]
    padded = F.interpolate(masks, (1024, 1024), mode="bilinear", align_corners=False)
    cut = padded[..., : image.input_size[0], : image.input_size[1]]
    full = F.interpolate(cut, image.original_size, mode="bilinear", align_corners=False)
    return full[0, 0]


def full_frame(mask: CompactMask, size: tuple[int, int]) -> NDArray[np.bool_]:
    frame = np.zeros(size, np.bool_)
    (x0, y0), (height, width) = mask.box.origin, mask.box.size
    frame[y0 : y0 + height, x0 : x0 + width] = mask.pixels()
    return frame


def reference_score(logits: torch.Tensor, offset: float) -> float:
    """By its definition: `calculate_stability_score` counts in 16 bits."""
    intersection, union = (logits > offset).sum(), (logits > -offset).sum()
    return float(intersection / union)


SIZES = [(1200, 1800), (1024, 1024), (512, 512), (303, 384), (2000, 37), (1, 1), (5, 3000), (9, 7)]


@pytest.mark.parametrize("smoothness", [1, 9, 63])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_are_the_references(size: tuple[int, int], smoothness: int) -> None:
    low_res_mask = smooth_logits(sum(size), smoothness)
    image = embedding(*size)
    expected = reference_upscale(low_res_mask, image)
    mask = FullSize(image).mask(low_res_mask, 1.0)
    work = mask.work
    found = full_frame(mask, size)
    assert np.count_nonzero(found != (expected > 0).numpy()) <= 1e-6 * found.size
    assert mask.area == np.count_nonzero(found)
    assert mask.stability_score == pytest.approx(
        reference_score(expected, 1.0), abs=2e-6, nan_ok=True
    )
    assert work.in_box >= mask.pixels().size
    if mask.area:
        pixels = mask.pixels()
        edges = (pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1])
        assert all(edge.any() for edge in edges)
    else:
        assert mask.box == EMPTY


@settings(max_examples=80, deadline=None)
@given(
    height=st.integers(1, 1500),
    width=st.integers(1, 1500),
    smoothness=st.sampled_from([1, 3, 9, 31, 101]),
    offset=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
@pytest.mark.slow
def test_masks_of_any_size(
    height: int, width: int, smoothness: int, offset: float, seed: int
) -> None:
    image, low_res_mask = embedding(height, width), smooth_logits(seed, smoothness)
    expected = reference_upscale(low_res_mask, image)
    score = reference_score(expected, offset)
    full_size = FullSize(image)
    mask = full_size.mask(low_res_mask, offset)
    # A pixel whose logit is a millionth from the threshold may fall on either side.
    found = full_frame(mask, (height, width))
    near = (expected.abs() < 1e-5 * np.abs(low_res_mask).max()).numpy()
    assert not ((found != (expected > 0).numpy()) & ~near).any()
    assert mask.stability_score == pytest.approx(score, abs=1e-4, nan_ok=True)
    assert full_size.stable(low_res_mask, offset, score + 1e-3) is None
    if not math.isnan(score):
        stable = full_size.stable(low_res_mask, offset, score - 1e-4)
        assert stable is not None
        assert stable.stability_score == mask.stability_score


def test_the_score_of_segment_anything() -> None:
    image, low_res_mask = embedding(300, 400), smooth_logits(3)
    expected = calculate_stability_score(reference_upscale(low_res_mask, image)[None], 0.0, 1.0)
    mask = FullSize(image).mask(low_res_mask, 1.0)
    assert mask.stability_score == pytest.approx(expected.item(), abs=2e-6)


def test_stability_score_of_very_wide_masks() -> None:
    """Where segment-anything's 16-bit sums overflow."""
    low_res_mask = np.full((256, 256), 5.0, np.float32)
    low_res_mask[:, 128:] = 0.5
    mask = FullSize(embedding(2, 70_000)).mask(low_res_mask, 1.0)
    assert mask.area == 140_000
    assert mask.stability_score == pytest.approx(0.5, abs=2e-3)


def test_nothing_is_not_stable() -> None:
    full_size, nothing = FullSize(embedding(90, 70)), np.full((256, 256), -9, np.float32)
    mask = full_size.mask(nothing, 1.0)
    assert math.isnan(mask.stability_score)
    assert (mask.area, mask.box, mask.pixels().shape) == (0, EMPTY, (0, 0))
    assert full_size.stable(nothing, 1.0, 0.0) is None


def test_what_is_clearly_unstable_is_ruled_out_by_its_cells(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or looking at them first would be of no use."""
    full_size = FullSize(embedding(1200, 1800))
    ramp = np.tile(np.linspace(-4, 4, 256, dtype=np.float32), (256, 1))
    assert full_size.mask(ramp, 1.0).stability_score < 0.65
    monkeypatch.delattr(FullSize, "_scored")
    assert full_size.stable(ramp, 1.0, 0.65) is None


def test_everything_is_one_mask() -> None:
    everything = np.full((256, 256), 9, np.float32)
    mask = FullSize(embedding(90, 70)).stable(everything, 1.0, 1.0)
    assert mask is not None
    assert (mask.box, mask.area) == (Box(0, 0, 70, 90), 6300)
    assert mask.pixels().all()


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_that_is_read_is_made(size: tuple[int, int]) -> None:
    """The decoder leaves out the logits of padding; what lies beyond may be anything."""
    image, low_res_mask = embedding(*size), smooth_logits(7)
    height, width = (4 * embedded(side) for side in image.input_size)
    beyond = np.full_like(low_res_mask, np.nan)
    beyond[:height, :width] = low_res_mask[:height, :width]
    full_size = FullSize(image)
    whole, part, marked = map(
        full_size.mask, (low_res_mask, low_res_mask[:height, :width].copy(), beyond)
    )
    expected = full_frame(whole, size)
    assert np.array_equal(full_frame(part, size), expected)
    assert np.array_equal(full_frame(marked, size), expected)


def test_little_more_is_made_than_is_read() -> None:
    for input_side in range(1, 1025):
        needed = -(-input_side // 16)
        assert min(64, needed) <= embedded(input_side) <= min(64, needed + 1)


def test_a_packed_mask_is_the_mask() -> None:
    full = smooth_logits(1)[:200, :101] > 0
    mask = PackedMask.of(full, 0.5)
    assert mask.area == np.count_nonzero(full)
    (x0, y0), (height, width) = mask.box.origin, mask.box.size
    assert np.array_equal(mask.pixels(), full[y0 : y0 + height, x0 : x0 + width])
    assert np.count_nonzero(full) == mask.pixels().sum()
    empty = PackedMask.of(np.zeros((5, 6), np.bool_), 0.5)
    assert (empty.box, empty.area, empty.pixels().shape) == (EMPTY, 0, (0, 0))


@pytest.mark.parametrize("size", [(1024, 1024), (900, 2000), (2300, 1900)], ids=str)
def test_much_work_is_done_later(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The mask is the same, and says beforehand how much work it is."""
    noise, image = smooth_logits(5, 1), FullSize(embedding(*size))
    monkeypatch.setattr(module, "DEFERRED_PIXELS", 10**9)
    at_once = image.mask(noise, 1.0)
    monkeypatch.setattr(module, "DEFERRED_PIXELS", 2**18)
    computed: list[FullSize] = []
    compute = FullSize.computed

    def watched(image: FullSize, low_res_mask: Logits, offset: float) -> CellMask:
        computed.append(image)
        return compute(image, low_res_mask, offset)

    monkeypatch.setattr(FullSize, "computed", watched)
    later = image.mask(noise, 1.0)
    assert isinstance(later, DeferredMask)
    assert later.work.along_outline == at_once.work.along_outline > 2**18
    assert size[0] * size[1] >= later.work.in_box >= at_once.work.in_box
    assert not computed
    assert np.array_equal(later.pixels(), at_once.pixels())
    assert (later.box, later.area) == (at_once.box, at_once.area)
    assert later.stability_score == at_once.stability_score
    assert len(computed) == 1
    disc = np.asarray(40 - np.hypot(*(np.indices((256, 256)) - 60)), np.float32)
    assert not isinstance(image.mask(disc), DeferredMask)
