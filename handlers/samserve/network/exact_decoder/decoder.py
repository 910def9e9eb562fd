# Follows segment-anything's modeling/mask_decoder.py and modeling/transformer.py (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module runs the decoder's layers on the tokens, with the image tokens in factored form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from samserve.network.families import Network, family_of

from .image import ImageWeights, PreparedImage
from .masks import ExactMasks
from .products import plus_times, times
from .upscaler import Upscaler, Upscaling
from .weights import DoubleWeights, TokenWeights


class ExactDecoder:
    """The rewritten decoder of one model.

    Args:
        model: a network of any type. Its decoder's weights are read here, so later changes to them
            have no effect.
        upscale: runs in place of `Upscaler.in_strips`, for a compiled upscaler.
        at_once: the number of prompts whose pixels are computed together; None for all prompts of
            a call.
    """

    @torch.inference_mode()
    def __init__(
        self, model: Network, upscale: Upscaling | None = None, at_once: int | None = None
    ) -> None:
        weights = DoubleWeights(model)
        self._at_once = at_once
        self._decoder = decoder = model.mask_decoder
        self._output_tokens = family_of(model).output_tokens(decoder)
        self._transformer = decoder.transformer
        layer0, layer1 = self._transformer.layers
        self._epsilon = (layer0.norm4.eps, layer1.norm4.eps)
        self._heads = weights.heads
        self._head_width = weights.head_width
        self._image_weights = ImageWeights(weights)
        self._token_weights = TokenWeights(weights)
        up = weights.up
        self.upscaler = Upscaler(
            decoder,
            weights.single(up @ weights.gamma1 @ weights.c),
            weights.single(up @ weights.beta1 + weights.up_bias),
        )
        self._upscale = upscale or self.upscaler.in_strips

    @torch.inference_mode()
    def prepare(
        self,
        features: torch.Tensor,
        input_size: tuple[int, int],
        maps: tuple[torch.Tensor, ...] = (),
    ) -> PreparedImage:
        """Compute the image's part of decoding, once for all prompts.

        Args:
            features: 1×256×64×64, the encoder's output.
            input_size: (height, width) of the part of the network's input that the image covers,
                in pixels.
            maps: the image's finer maps, if the network has any; see `Embedding.maps`.
        """
        return self._image_weights.prepare(features, input_size, maps)

    @torch.inference_mode()
    def decode(self, image: PreparedImage, sparse: torch.Tensor) -> ExactMasks:
        """Decode B prompts on one image.

        Args:
            image: the image, as `prepare` returns it.
            sparse: B×n×256, the prompt encoder's sparse embeddings, on the model's device.
        """
        decoder, (layer0, layer1) = self._decoder, self._transformer.layers
        output_tokens = self._output_tokens
        tokens_pe = torch.cat([output_tokens.expand(len(sparse), -1, -1), sparse], dim=1)
        state = _State.empty(len(sparse), self._heads * tokens_pe.shape[1], image)

        tokens = layer0.norm1(layer0.self_attn(tokens_pe, tokens_pe, tokens_pe))
        tokens = self._read_layer0(image, tokens, tokens_pe)
        v0, u0 = self._write_layer0(image, tokens, tokens_pe, state)

        with_pe = tokens + tokens_pe
        tokens = layer1.norm1(tokens + layer1.self_attn(with_pe, with_pe, tokens))
        tokens = self._read_layer1(image, tokens, tokens_pe, u0, state)
        u = self._write_layer1(image, tokens, tokens_pe, v0, u0, state)
        # No self-attention follows, so the prompt's tokens have no more effect.
        count = len(output_tokens)
        tokens = self._read_final(image, tokens[:, :count], tokens_pe[:, :count], u, state)

        iou, masks = tokens[:, -5], tokens[:, -4:]
        mlps = decoder.output_hypernetworks_mlps
        return ExactMasks(
            iou_predictions=decoder.iou_prediction_head(iou),
            _upscaler=self.upscaler,
            _upscale=self._upscale,
            _up=self._token_weights.up,
            _image=image,
            _hyper=torch.stack([mlp(masks[:, i]) for i, mlp in enumerate(mlps)], dim=1),
            _attention=state.attention,
            _u=u,
            _d0=state.d0,
            _d1=state.d1,
        )

    # `_read_…` is attention of tokens to the image, `_write_…` of the image to tokens. Whatever has
    # b×J×N scores is computed for a slice of the prompts at a time.

    def _slices(self, prompts: torch.Tensor) -> Iterator[slice]:
        """Yield slices of the prompts whose pixels are computed together."""
        at_once = self._at_once or len(prompts)
        return (slice(i, i + at_once) for i in range(0, len(prompts), at_once))

    def _read_layer0(
        self, image: PreparedImage, tokens: torch.Tensor, tokens_pe: torch.Tensor
    ) -> torch.Tensor:
        """Return the tokens after they attended to the image tokens E."""
        layer = self._transformer.layers[0]
        attention = layer.cross_attn_token_to_image
        read = torch.empty_like(queries := self._for_scores(attention.q_proj, tokens + tokens_pe))
        for s in self._slices(queries):
            scores = times(queries[s], image.keys_t0).softmax(-1)
            read[s] = times(scores, image.values_t0)
        return self._after_read(layer, attention, tokens, read)

    def _write_layer0(
        self, image: PreparedImage, tokens: torch.Tensor, tokens_pe: torch.Tensor, state: _State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Let the image attend to the tokens: fill d₀ and A₀ in `state`.

        Returns:
            The tokens' values, B×H×T×16, and U₀, B×J×256.
        """
        w = self._token_weights
        attention = self._transformer.layers[0].cross_attn_image_to_token
        keys = self._for_scores(attention.k_proj, tokens + tokens_pe)
        values = self._split(attention.v_proj(tokens))
        u0 = (values @ w.to_u0).flatten(1, 2)
        gram = u0 @ u0.mT
        width = u0.shape[2]
        for s in self._slices(keys):
            a0 = times(keys[s], image.queries_i0).softmax(2).flatten(1, 2)
            cross = times(2 * values[s], image.onto_u0).flatten(1, 2)
            norm = cross.baddbmm_(gram[s], a0).mul_(a0).sum(1).add_(image.norm0)
            torch.rsqrt(norm / width + self._epsilon[0], out=state.d0[s])
            torch.mul(a0, state.d0[s, None], out=state.a0(s))
        return values, u0

    def _read_layer1(
        self,
        image: PreparedImage,
        tokens: torch.Tensor,
        tokens_pe: torch.Tensor,
        u0: torch.Tensor,
        state: _State,
    ) -> torch.Tensor:
        """Return the tokens after they attended to keys₁."""
        w = self._token_weights
        layer = self._transformer.layers[1]
        attention = layer.cross_attn_token_to_image
        queries = self._for_scores(attention.q_proj, tokens + tokens_pe)
        through_u = (queries @ w.read_t1).flatten(1, 2) @ u0.mT
        read = torch.empty_like(queries)
        for s in self._slices(queries):
            d0, a0 = state.d0[s, None], state.a0(s)
            scores = times(queries[s], image.keys_t1).mul_(d0[:, None])
            scores.flatten(1, 2).baddbmm_(through_u[s], a0)
            weights = plus_times(scores, queries[s], w.pe_t1).softmax(-1)
            sums = (weights.flatten(1, 2) @ a0.mT @ u0[s]).view(*weights.shape[:3], -1)
            read[s] = times(weights.mul_(d0[:, None]), image.values_t1)
            read[s] += times(sums, w.sum_t1) + w.bias_t1
        return self._after_read(layer, attention, tokens, read)

    def _write_layer1(
        self,
        image: PreparedImage,
        tokens: torch.Tensor,
        tokens_pe: torch.Tensor,
        v0: torch.Tensor,
        u0: torch.Tensor,
        state: _State,
    ) -> torch.Tensor:
        """Let the image attend to the tokens: fill d₁ and A₁ in `state`.

        Returns:
            U₀γ₀ and below it U₁, B×2J×256.
        """
        w = self._token_weights
        attention = self._transformer.layers[1].cross_attn_image_to_token
        j, width = u0.shape[1:]
        keys = self._for_scores(attention.k_proj, tokens + tokens_pe)
        values = self._split(attention.v_proj(tokens))
        through_u = (keys @ w.read_i1).flatten(1, 2) @ u0.mT
        u = torch.cat([(v0 @ w.to_u0_scaled).flatten(1, 2), (values @ w.to_u1).flatten(1, 2)], 1)
        gram, along_c = u @ u.mT, 2 * (u @ w.c)
        # ‖A₀U₀ + A₁U₁‖² = A₀(U₀U₀ᵀ)A₀ᵀ + 2·A₀(U₀U₁ᵀ)A₁ᵀ + A₁(U₁U₁ᵀ)A₁ᵀ, so the lower left quarter
        # of the Gram matrix is not needed.
        gram[:, :j, j:] *= 2
        both = 2 * torch.cat([v0, values], dim=1)
        for s in self._slices(keys):
            d0, a = state.d0[s], state.attention[s]
            scores = times(keys[s], image.queries_i1).mul_(d0[:, None, None])
            scores.flatten(1, 2).baddbmm_(through_u[s], state.a0(s))
            scores = plus_times(scores, keys[s], w.pe_i1)
            torch.softmax(scores, 2, out=a[:, j:].view_as(scores))

            cross = times(both[s], image.onto_u).flatten(1, 2)
            cross.mul_(d0[:, None]).add_(along_c[s, :, None])
            cross[:, :j].baddbmm_(gram[s, :j], a)
            cross[:, j:].baddbmm_(gram[s, j:, j:], a[:, j:])
            norm = cross.mul_(a).sum(1).add_(w.c_norm)
            norm += d0 * (d0 * image.norm1 + image.along_c)
            torch.rsqrt(norm / width + self._epsilon[1], out=state.d1[s])
        return u

    def _read_final(
        self,
        image: PreparedImage,
        tokens: torch.Tensor,
        tokens_pe: torch.Tensor,
        u: torch.Tensor,
        state: _State,
    ) -> torch.Tensor:
        """Return the output tokens after they attended to keys₂."""
        w = self._token_weights
        attention = self._transformer.final_attn_token_to_image
        queries = self._for_scores(attention.q_proj, tokens + tokens_pe)
        through_u = (queries @ w.read_final).flatten(1, 2) @ u.mT
        along_c = (queries * w.read_final_c[:, None]).sum(-1, keepdim=True)
        read = torch.empty_like(queries)
        for s in self._slices(queries):
            d0, d1, a = state.d0[s, None, None], state.d1[s, None, None], state.attention[s]
            scores = times(queries[s], image.keys_final).mul_(d0)
            scores.flatten(1, 2).baddbmm_(through_u[s], a)
            scores.add_(along_c[s]).mul_(d1)
            weights = plus_times(scores, queries[s], w.pe_final).softmax(-1).mul_(d1)
            sums = (weights.flatten(1, 2) @ a.mT @ u[s]).view(*weights.shape[:3], -1)
            constant = weights.sum(-1, keepdim=True) * w.sum_final_c[:, None]
            read[s] = times(weights.mul_(d0), image.values_final)
            read[s] += times(sums, w.sum_final) + constant + w.bias_final
        read_out = attention.out_proj(self._merge(read))
        tokens = self._transformer.norm_final_attn(tokens + read_out)
        return tokens

    def _after_read(
        self, layer: Any, attention: Any, tokens: torch.Tensor, read: torch.Tensor
    ) -> torch.Tensor:
        """Return the tokens after a layer's output matrix, norms and MLP."""
        tokens = layer.norm2(tokens + attention.out_proj(self._merge(read)))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        return tokens

    def _for_scores(self, projection: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
        """Return the tokens' queries or keys, B×H×T×16, times the scale of the scores."""
        scaled: torch.Tensor = self._split(projection(tokens)) * self._head_width**-0.5
        return scaled

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """B×T×128 -> B×H×T×16."""
        return tokens.view(*tokens.shape[:2], self._heads, self._head_width).transpose(1, 2)

    def _merge(self, by_head: torch.Tensor) -> torch.Tensor:
        """B×H×T×16 -> B×T×128."""
        return by_head.transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class _State:
    """The factored image tokens of B prompts: buffers that the layers fill in turn."""

    attention: torch.Tensor  # B×2J×N: d₀·A₀ and below it A₁
    d0: torch.Tensor  # B×N
    d1: torch.Tensor  # B×N

    @classmethod
    def empty(cls, prompts: int, j: int, image: PreparedImage) -> _State:
        """Return buffers for this number of prompts and J = heads × tokens."""
        pixels = image.norm0
        return cls(
            attention=pixels.new_empty(prompts, 2 * j, len(pixels)),
            d0=pixels.new_empty(prompts, len(pixels)),
            d1=pixels.new_empty(prompts, len(pixels)),
        )

    def a0(self, prompts: slice) -> torch.Tensor:
        """Return d₀·A₀ of some prompts, b×J×N."""
        return self.attention[prompts, : self.attention.shape[1] // 2]
