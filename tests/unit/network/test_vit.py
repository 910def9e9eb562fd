"""The rewritten image encoder equals the original in the widths of its three types."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from samserve.network import vit
from samserve.network.vit import ViT

WIDTHS = {"vit_b": (768, 12), "vit_l": (1024, 16), "vit_h": (1280, 16)}


SMALL = 480
"""Pixels along a side: 30×30 tokens, which windows of 14 do not divide, like 64×64."""


def encoder_of(width: int, heads: int, side: int) -> Any:
    """Return an encoder with one block with windows and one without, with random weights."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        depth=2,
        embed_dim=width,
        img_size=side,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        num_heads=heads,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=14,
    )
    for name, parameter in encoder.named_parameters():
        if "pos" in name:  # the initial zeros would hide every mistake
            nn.init.normal_(parameter, std=0.3)
    return encoder.eval().requires_grad_(False)


@pytest.mark.parametrize(
    ("model_type", "side"), [("vit_b", 1024), ("vit_l", SMALL), ("vit_h", SMALL)]
)
@pytest.mark.slow
@torch.inference_mode()
def test_equal_to_the_reference(model_type: str, side: int) -> None:
    encoder = encoder_of(*WIDTHS[model_type], side)
    pixels = torch.randn(1, 3, side, side)
    expected = encoder(pixels)
    found = ViT(encoder)(pixels)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
@torch.inference_mode()
def test_one_kernel_is_equal_to_strips(monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """Run the GPU's code, which has positions within the product, on the CPU."""
    encoder = encoder_of(152, 2, SMALL)  # 76 per head: no multiple of eight, which kernels require
    pixels = torch.randn(batch, 3, SMALL, SMALL)
    expected = encoder(pixels)
    network = ViT(encoder)
    torch.testing.assert_close(network(pixels), expected, atol=5e-5, rtol=1e-4)
    blocks: Any = network.blocks
    positions = {len(block.rows): block.positions for block in blocks}

    def fused(q: Any, k: Any, v: Any, rows: Any, columns: Any) -> torch.Tensor:
        by_query = rows.flatten(2, 3), columns.flatten(2, 3)
        return vit._fused(q, k, v, *by_query, positions[rows.shape[2]])

    monkeypatch.setattr(vit, "_in_strips", fused)
    torch.testing.assert_close(network(pixels), expected, atol=5e-5, rtol=1e-4)


def test_weights_are_the_encoders_own() -> None:
    """Weights that are mapped from a file stay shared between processes."""
    encoder = encoder_of(64, 2, SMALL)
    own = {parameter.data_ptr() for parameter in encoder.parameters()}
    kept = {parameter.data_ptr() for parameter in ViT(encoder).parameters()}
    assert kept < own
    assert len(own - kept) == 4  # the two blocks' tables of relative positions
