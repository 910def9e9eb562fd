# Follows segment-anything's modeling/mask_decoder.py and modeling/transformer.py (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module folds the mask decoder's weights into the matrices that the exact decoder uses.

The matrices are composed in double precision, so that composing them adds no rounding, and on the
CPU, because not every device has double precision.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from samserve.network.families import Network


class DoubleWeights:
    """The original decoder's weights in double precision, under the names of the formulas.

    The formulas are in the package's docstring and in `docs/exact-decoder.md`.

    Args:
        model: a network of any type.

    Attributes:
        t0, t1, i0, i1, final: the attention modules: token to image (t) and image to token (i)
            of layers 0 and 1, and the final one, token to image.
        pe: 256×N, the position encoding of the image tokens.
        no_mask: 256, added to the features when there is no mask prompt.
        centre: 256×256; the product with it subtracts the mean over the channels.
        gamma0, beta0, gamma1, beta1: weights (as a diagonal matrix) and biases of the LayerNorms
            that end layers 0 and 1.
        scaled: 256×256, from centred E to centred Eγ₀.
        out0, out1: 256×128, the output matrices of i0 and i1.
        c: 256, centred β₀ plus centred bias of i1.
        up: 256×256, the first transposed convolution: (dy, dx, channel)×256.
        up_bias: 256, its bias.
    """

    def __init__(self, model: Network) -> None:
        decoder = model.mask_decoder
        layer0, layer1 = decoder.transformer.layers
        self.t0, self.t1 = layer0.cross_attn_token_to_image, layer1.cross_attn_token_to_image
        self.i0, self.i1 = layer0.cross_attn_image_to_token, layer1.cross_attn_image_to_token
        self.final = decoder.transformer.final_attn_token_to_image
        self.heads: int = self.t0.num_heads
        self.head_width: int = self.t0.internal_dim // self.t0.num_heads
        self.device: torch.device = model.device

        self.pe = double(model.prompt_encoder.get_dense_pe())[0].flatten(1)
        self.no_mask = double(model.prompt_encoder.no_mask_embed.weight)[0]
        width = len(self.no_mask)
        self.centre = torch.eye(width, dtype=torch.double) - 1 / width
        self.gamma0 = torch.diag(double(layer0.norm4.weight))
        self.beta0 = double(layer0.norm4.bias)
        self.gamma1 = torch.diag(double(layer1.norm4.weight))
        self.beta1 = double(layer1.norm4.bias)
        self.scaled = self.centre @ self.gamma0 @ self.centre
        self.out0, self.out1 = double(self.i0.out_proj.weight), double(self.i1.out_proj.weight)
        self.c = self.centre @ (self.beta0 + double(self.i1.out_proj.bias))
        convolution = double(decoder.output_upscaling[0].weight)
        self.up = convolution.permute(2, 3, 1, 0).reshape(-1, width)
        self.up_bias = double(decoder.output_upscaling[0].bias).repeat(4)

    def single(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a tensor in single precision, on the model's device."""
        return tensor.float().contiguous().to(self.device)

    def by_head(self, matrix: torch.Tensor) -> torch.Tensor:
        """128×M double -> H×16×M in single precision, on the model's device."""
        return self.single(matrix).view(self.heads, self.head_width, -1)


class TokenWeights:
    """The folded matrices that `ExactDecoder.decode` multiplies per prompt.

    Attributes:
        pe_t1, pe_i1, pe_final: H×16×N, what the position encoding, β and the biases add to the
            keys (queries in `pe_i1`).
        bias_t1, bias_final: H×1×16, what β and the biases add to the values.
        to_u0, to_u0_scaled, to_u1: H×16×256, from the tokens' values to U₀, U₀γ₀ and U₁.
        read_t1, read_i1, read_final: H×16×256, from queries (keys in `read_i1`) to what they are
            multiplied by on the side of U.
        sum_t1, sum_final: H×256×16, from weighted sums of U's rows to values.
        c: 256.
        c_norm: ‖c‖².
        read_final_c, sum_final_c: H×16, the parts of c in the final scores and values.
        up: 256×256, from U's side to the first transposed convolution's output.
    """

    def __init__(self, double_weights: DoubleWeights) -> None:
        w = double_weights
        t1, i1, final = w.t1, w.i1, w.final
        self.pe_t1 = w.by_head(with_bias(t1.k_proj, w.beta0[:, None] + w.pe))
        self.pe_i1 = w.by_head(with_bias(i1.q_proj, w.beta0[:, None] + w.pe))
        self.pe_final = w.by_head(with_bias(final.k_proj, w.beta1[:, None] + w.pe))
        self.bias_t1 = w.by_head(with_bias(t1.v_proj, w.beta0[:, None])).mT
        self.bias_final = w.by_head(with_bias(final.v_proj, w.beta1[:, None])).mT

        self.to_u0 = w.by_head((w.centre @ w.out0).T)
        self.to_u0_scaled = w.by_head((w.centre @ w.gamma0 @ w.centre @ w.out0).T)
        self.to_u1 = w.by_head((w.centre @ w.out1).T)
        self.read_t1 = w.by_head(double(t1.k_proj.weight) @ w.gamma0)
        self.sum_t1 = w.by_head(double(t1.v_proj.weight) @ w.gamma0).mT
        self.read_i1 = w.by_head(double(i1.q_proj.weight) @ w.gamma0)
        self.read_final = w.by_head(double(final.k_proj.weight) @ w.gamma1)
        self.sum_final = w.by_head(double(final.v_proj.weight) @ w.gamma1).mT

        self.c = w.single(w.c)
        self.c_norm = float(w.c @ w.c)
        self.read_final_c = self.read_final @ self.c
        self.sum_final_c = self.c @ self.sum_final
        self.up = w.single((w.up @ w.gamma1).T)


def double(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor in double precision, on the CPU, without its gradient."""
    return tensor.detach().cpu().double()


def with_bias(linear: nn.Linear | Any, columns: torch.Tensor) -> torch.Tensor:
    """Return a linear layer's output for each of these columns, in double precision."""
    return double(linear.weight) @ columns + double(linear.bias)[:, None]
