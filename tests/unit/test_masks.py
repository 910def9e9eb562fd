"""Masks at the image's own size, against the reference's interpolation and score."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mobile_sam.utils.amg import calculate_stability_score
from torch.nn import functional as F

from samserve.encoder import Embedding
from samserve.masks import Logits, StabilityBound, stability_score, upscale


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


SIZES = [(1200, 1800), (1024, 1024), (512, 512), (303, 384), (2000, 37), (1, 1), (5, 3000)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_upscaling_is_the_references(size: tuple[int, int]) -> None:
    low_res_mask = smooth_logits(seed=sum(size))
    ours = upscale(low_res_mask, embedding(*size))
    expected = reference_upscale(low_res_mask, embedding(*size)).numpy()
    assert ours.shape == size
    # The interpolation's coordinates are single precision on either side.
    assert np.abs(ours - expected).max() <= 1e-4 * np.abs(low_res_mask).max()
    assert np.count_nonzero((ours > 0) != (expected > 0)) <= 1 + 2e-6 * ours.size


def test_stability_score_is_the_references() -> None:
    logits = torch.randn(7, 30, 40, generator=torch.Generator().manual_seed(0)) * 3
    expected = calculate_stability_score(logits, 0.0, 1.0)
    assert [stability_score(mask.numpy(), 1.0) for mask in logits] == expected.tolist()


def test_stability_score_of_very_wide_masks() -> None:
    """Where segment-anything's 16-bit sums overflow."""
    logits = np.full((2, 70_000), 5.0, np.float32)
    logits[1] = 0.5
    assert stability_score(logits, 1.0) == 0.5


def test_stability_of_nothing_is_no_number() -> None:
    assert math.isnan(stability_score(np.full((4, 4), -9, np.float32), 1.0))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 1500),
    width=st.integers(1, 1500),
    smoothness=st.sampled_from([1, 3, 9, 31]),
    offset=st.sampled_from([0.0, 0.5, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
def test_no_mask_is_more_stable_than_its_bound(
    height: int, width: int, smoothness: int, offset: float, seed: int
) -> None:
    image = embedding(height, width)
    low_res_mask = smooth_logits(seed, smoothness)
    score = stability_score(upscale(low_res_mask, image), offset)
    assert math.isnan(score) or score <= StabilityBound(image)(low_res_mask, offset)


def test_the_bound_rules_out_what_is_clearly_unstable() -> None:
    """Or it would be of no use."""
    image = embedding(1200, 1800)
    ramp = np.tile(np.linspace(-4, 4, 256, dtype=np.float32), (256, 1))
    assert stability_score(upscale(ramp, image), 1.0) < 0.65
    assert StabilityBound(image)(ramp, 1.0) < 0.65
