"""SAM 2's masks at the image's size: one interpolation of 256×256 logits, against PyTorch's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn import functional as F

from samserve.masks.compact import CompactMask
from samserve.masks.full_size import FullSize, direct_axis
from samserve.masks.on_gpu import scored
from samserve.network.decoder import PlainMasks
from samserve.network.encoder import Embedding
from samserve.network.families import SAM2

SIZES = [(1200, 1800), (1024, 1024), (256, 256), (97, 301), (40, 800), (9, 9), (1, 1), (2, 3000)]


def embedding(height: int, width: int) -> Embedding:
    """Of no image, but as large as one."""
    return Embedding(torch.zeros(1), (1024, 1024), (height, width), SAM2)


def logits_of(seed: int, smoothness: int) -> torch.Tensor:
    noise = torch.randn(1, 1, 256, 256, generator=torch.Generator().manual_seed(seed))
    return F.avg_pool2d(noise, smoothness, 1, smoothness // 2)[0, 0] * 5 * smoothness


def expected(logits: torch.Tensor, size: tuple[int, int]) -> NDArray[np.float32]:
    """`SAM2Transforms.postprocess_masks`."""
    full = F.interpolate(logits[None, None], size, mode="bilinear", align_corners=False)
    return np.asarray(full[0, 0].numpy())


def pixels_of(mask: CompactMask, size: tuple[int, int]) -> NDArray[np.bool_]:
    frame = np.zeros(size, np.bool_)
    (x0, y0), (height, width) = mask.box.origin, mask.box.size
    frame[y0 : y0 + height, x0 : x0 + width] = mask.pixels()
    return frame


def is_the_references(size: tuple[int, int], logits: torch.Tensor, offset: float) -> Any:
    full = expected(logits, size)
    mask = FullSize(embedding(*size)).mask(logits.numpy(), offset)
    near = np.abs(full) < 1e-5 * np.abs(full).max()  # rounding decides there
    found = pixels_of(mask, size)
    assert not ((found != (full > 0)) & ~near).any()
    union = np.count_nonzero(full > -offset)
    if union:
        score = np.count_nonzero(full > offset) / union
        assert mask.stability_score == pytest.approx(score, abs=1e-5 + 1.5 * near.sum() / union)
    return mask


@pytest.mark.parametrize("smoothness", [1, 9, 63])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_masks_are_the_references(size: tuple[int, int], smoothness: int) -> None:
    is_the_references(size, logits_of(sum(size), smoothness), 1.0)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 1500),
    width=st.integers(1, 1500),
    smoothness=st.sampled_from([1, 3, 31, 101]),
    offset=st.sampled_from([0.05, 1.0, 4.0]),
    seed=st.integers(0, 99),
)
def test_masks_of_any_size(
    height: int, width: int, smoothness: int, offset: float, seed: int
) -> None:
    is_the_references((height, width), logits_of(seed, smoothness), offset)


@pytest.mark.parametrize("size", [*range(1, 40), 255, 256, 257, 511, 512, 513, 1023, 1500, 20_000])
def test_each_pixel_reads_what_it_reads_in_pytorch(size: int) -> None:
    logits = logits_of(size, 1)[:1]  # one row, so that only one axis is interpolated
    wanted = expected(logits, (1, size))[0]
    axis = direct_axis(size)
    padded = F.pad(logits[None], (1, 3), mode="replicate")[0, 0].numpy()
    step = np.arange(size) - axis.start[axis.cell]
    weights = axis.weights[:, step, axis.cell]
    found = sum(weights[k] * padded[axis.cell + k] for k in range(3))
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    assert axis.count.sum() == size


@pytest.mark.parametrize("size", [(97, 301), (9, 9), (300, 40)], ids=str)
def test_masks_scored_at_once_are_those_scored_one_by_one(size: tuple[int, int]) -> None:
    """As on a GPU, and as on a CPU."""
    logits = torch.stack([logits_of(seed, 15) for seed in range(8)]).view(2, 4, 256, 256)
    decoded = PlainMasks(torch.zeros(2, 4), logits)
    wanted = [(prompt, channel) for prompt in range(2) for channel in range(4)]
    together = list(scored(decoded, wanted, embedding(*size), 1.0, 0.1, 1))
    full_size = FullSize(embedding(*size))
    alone = [full_size.stable(logits[place].numpy(), 1.0, 0.1) for place in wanted]
    assert [mask.index for mask in together] == [i for i, mask in enumerate(alone) if mask]
    assert together
    for found in together:
        mask = alone[found.index]
        assert mask is not None
        assert np.count_nonzero(pixels_of(found.mask, size) != pixels_of(mask, size)) <= 1
        assert found.mask.stability_score == pytest.approx(float(mask.stability_score), abs=0.02)
