# Follows segment-anything's modeling/mask_decoder.py and modeling/transformer.py (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module computes the image's part of decoding, once for all prompts on an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from .weights import DoubleWeights, double, with_bias

SIDE = 64
"""Height and width of the embedding in its pixels. Each pixel becomes 4×4 pixels of a mask."""

_Affine = tuple[torch.Tensor, torch.Tensor]  # a matrix, and a column to add


@dataclass(frozen=True)
class PreparedImage:
    """Everything that the decoder needs of one image, whatever the prompt.

    A name says which attention a tensor belongs to: `t` (token to image), `i` (image to token), and
    the layer 0 or 1, or the final one. Values are H×N×16, all others H×16×N unless stated.
    """

    keys_t0: torch.Tensor
    values_t0: torch.Tensor
    queries_i0: torch.Tensor
    keys_t1: torch.Tensor
    values_t1: torch.Tensor
    queries_i1: torch.Tensor
    keys_final: torch.Tensor
    values_final: torch.Tensor
    onto_u0: torch.Tensor
    """E·W_outᵀ of layer 0. Times a token's values it is the inner product of E with U₀."""
    onto_u: torch.Tensor
    """The same for Eγ₀ with U₀γ₀, and below it for Eγ₀ with U₁; 2H×16×N."""
    norm0: torch.Tensor
    """‖E‖² of each pixel, N."""
    norm1: torch.Tensor
    """‖Eγ₀‖² of each pixel, centred, N."""
    along_c: torch.Tensor
    """2·Eγ₀·c of each pixel, N."""
    maps: tuple[torch.Tensor, ...]
    """What the upscaler adds of the image's finer maps, h×w×256 and h×w×512; SAM 1 has none."""
    upscaled: torch.Tensor
    """E through the first transposed convolution, h×w×256, for the pixels that the image covers.
    The others are padding. Tokens attend to padding too, but its masks would be cut off."""

    @property
    def nbytes(self) -> int:
        """The bytes of memory of all parts. Most parts share one storage, which counts once."""
        parts = [t for t in vars(self).values() if isinstance(t, torch.Tensor)]
        storages = {t.untyped_storage().data_ptr(): t for t in [*parts, *self.maps]}
        return sum(t.untyped_storage().nbytes() for t in storages.values())


class ImageWeights:
    """The folded matrices that are multiplied with an image's features."""

    def __init__(self, double_weights: DoubleWeights) -> None:
        w = double_weights
        self._head_width = w.head_width
        # `w.no_mask` is added because the features lack it, and the bias of layer 0's attention
        # because it belongs to the centred sum E.
        self._shift = w.no_mask + double(w.i0.out_proj.bias)
        # One matrix for everything that is linear in the features. The values and `upscaled` are
        # copied into another layout, so they have a separate matrix: in one with the keys, its
        # whole output would stay in memory beside the copies.
        parts = (self._keys(w), self._values(w))
        self._of_image = [_stacked(w, part) for part in parts]
        self._rows = [[len(matrix) for matrix, _ in part] for part in parts]
        self._pe_k0 = w.single(double(w.t0.k_proj.weight) @ w.pe)
        self._pe_q0 = w.single(double(w.i0.q_proj.weight) @ w.pe)
        self._to_norms = [
            (w.single(matrix), w.single(matrix @ self._shift)[:, None])
            for matrix in (w.centre, w.scaled)
        ]

    def _keys(self, w: DoubleWeights) -> list[_Affine]:
        """Return the maps to keys, queries, `onto_u0`, `onto_u` and `along_c`, in that order."""
        return [
            _plain(w, w.t0.k_proj),
            _plain(w, w.i0.q_proj),
            self._centred(w, double(w.t1.k_proj.weight) @ w.gamma0),
            self._centred(w, double(w.i1.q_proj.weight) @ w.gamma0),
            self._centred(w, double(w.final.k_proj.weight) @ w.gamma1 @ w.scaled),
            self._centred(w, w.out0.T),
            self._centred(w, torch.cat([w.out0.T @ w.centre @ w.gamma0, w.out1.T]) @ w.scaled),
            self._centred(w, 2 * (w.c @ w.scaled)[None]),
        ]

    def _values(self, w: DoubleWeights) -> list[_Affine]:
        """Return the maps to the values of t0, t1 and the final attention, and to `upscaled`."""
        return [
            _plain(w, w.t0.v_proj),
            self._centred(w, double(w.t1.v_proj.weight) @ w.gamma0),
            self._centred(w, double(w.final.v_proj.weight) @ w.gamma1 @ w.scaled),
            self._centred(w, w.up @ w.gamma1 @ w.scaled),
        ]

    def _centred(self, w: DoubleWeights, matrix: torch.Tensor) -> _Affine:
        return matrix @ w.centre, (matrix @ w.centre @ self._shift)[:, None]

    def prepare(
        self,
        features: torch.Tensor,
        input_size: tuple[int, int],
        maps: tuple[torch.Tensor, ...],
    ) -> PreparedImage:
        """Compute the image's part of decoding.

        Args:
            features: 1×256×64×64, the encoder's output.
            input_size: (height, width) of the part of the network's input that the image covers,
                in pixels.
            maps: the image's finer maps, 64×64×256 and 64×64×512, or none.
        """
        height, width = map(embedded, input_size)
        pixels = features[0].flatten(1)
        (*keys, along_c), (*values, upscaled) = (
            torch.split(torch.addmm(bias, matrix, pixels), rows)
            for (matrix, bias), rows in zip(self._of_image, self._rows, strict=True)
        )
        k0, q0, k1, q1, k_final, u0, u = map(self._heads, keys)
        v0, v1, v_final = (self._heads(part).mT.contiguous() for part in values)
        k0.view_as(self._pe_k0).add_(self._pe_k0)
        q0.view_as(self._pe_q0).add_(self._pe_q0)
        norm0, norm1 = (
            torch.addmm(shift, matrix, pixels).square_().sum(0) for matrix, shift in self._to_norms
        )
        return PreparedImage(
            keys_t0=k0,
            values_t0=v0,
            queries_i0=q0,
            keys_t1=k1,
            values_t1=v1,
            queries_i1=q1,
            keys_final=k_final,
            values_final=v_final,
            onto_u0=u0,
            onto_u=u,
            norm0=norm0,
            norm1=norm1,
            along_c=along_c[0],
            maps=tuple(part[:height, :width] for part in maps),
            upscaled=upscaled.view(-1, SIDE, SIDE)[:, :height, :width]
            .permute(1, 2, 0)
            .contiguous(),
        )

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        """128×N -> H×16×N."""
        return rows.view(-1, self._head_width, rows.shape[1])


def embedded(input_side: int) -> int:
    """Return how many of the embedding's pixels an image needs along a side.

    Interpolation of the mask reads up to two logits beyond the image's last pixel, so their
    pixels count, too.

    Args:
        input_side: height or width of the image in pixels of the network's input.
    """
    logits = -(-input_side // 4) + 2
    return min(-(-logits // 4), SIDE)


def _plain(w: DoubleWeights, part: nn.Linear) -> _Affine:
    return double(part.weight), with_bias(part, w.no_mask[:, None])


def _stacked(w: DoubleWeights, maps: Sequence[_Affine]) -> _Affine:
    """Return several maps of the features as one."""
    matrices, biases = zip(*maps, strict=True)
    return w.single(torch.cat(matrices)), w.single(torch.cat(biases))
