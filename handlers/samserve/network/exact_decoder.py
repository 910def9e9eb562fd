"""SAM's mask decoder, rewritten so that a prompt costs a fifth of the arithmetic.

Source: `mask_decoder.py` and `transformer.py` of segment-anything. The same function of
the same weights; only float rounding differs (logits by about 1e-4).

The decoder lets T tokens (five of its own, and the prompt's) and N = 64×64 image tokens
attend to each other, twice over. As written, it carries the N×256 image side along for
every prompt and multiplies it by ten 256-wide matrices. But all prompts of an image start
from the same image tokens E, and change them only by attending to T tokens: a change of
rank H·T (H = 8 heads) out of N×256 numbers. So the image side is never formed:

    layer 0:  keys₁ = d₀·(E + A₀U₀)·γ₀ + β₀                  A₀: N×HT, U₀: HT×256
    layer 1:  keys₂ = d₁·(d₀·(E + A₀U₀)·γ₀ + A₁U₁ + c)·γ₁ + β₁

A is the attention of the image tokens to the T tokens (softmax over T, all heads side by
side); U is what those tokens have to say (their values through the head's output matrix);
d is LayerNorm's 1/deviation, one number a pixel; γ, β are its weights and c its β₀ with
the attention's bias. LayerNorm's mean is gone because E and U are centred over the
channels beforehand; its deviation needs only the norm of the rows of a sum,

    ‖E + A₀U₀‖² = ‖E‖² + 2·A₀·(E U₀ᵀ) + A₀ (U₀U₀ᵀ) A₀ᵀ.

Whatever is wanted of the keys (attention scores, values, the first transposed convolution)
is linear in them, so it is a part that depends on the image alone, computed once per image
(`PreparedImage`), and a part of rank HT through A. Scores never see a key either: the
matrix that would make keys is applied to the T queries instead, and the one that would make
values to the T sums.

The tokens' own side (self-attention, MLPs, norms) is small, and is the reference's modules.

On a CPU prompts go through one at a time, in slices of one: what is computed of a prompt's
pixels then stays in the processor's cache. A GPU has no use for so little at once, and takes
them all together.

Takes sparse prompts only. A mask prompt is added to E, which ends the sharing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .originals import Sam

_SIDE = 64  # of the embedding, in its pixels; each becomes 4×4 of a mask
_STRIP = 1024  # pixels upscaled at once: their activations fit the cache

_Affine = tuple[torch.Tensor, torch.Tensor]  # a matrix and a column to add

_UpscalerInputs = tuple[
    torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor
]

Upscaling = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    torch.Tensor,
]
"""What `Upscaler.forward` is."""


@dataclass(frozen=True)
class PreparedImage:
    """All that the decoder needs of one image, whatever the prompt.

    Names say whose part it is: attention `t` (token to image) or `i` (image to token), its
    keys, values or queries, and the layer 0, 1 or the final one. Values are H×N×16, all
    else H×16×N unless said.
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
    """E·W_outᵀ of layer 0: times a token's values it is the inner product with U₀."""
    onto_u: torch.Tensor
    """The same for Eγ₀ and U₀γ₀, and below it for Eγ₀ and U₁; 2H×16×N."""
    norm0: torch.Tensor
    """‖E‖² of each pixel, N."""
    norm1: torch.Tensor
    """‖Eγ₀‖² of each pixel, centred, N."""
    along_c: torch.Tensor
    """2·Eγ₀·c of each pixel, N."""
    upscaled: torch.Tensor
    """E through the first transposed convolution, h×w×256: of the pixels that the image covers.
    The others are padding. Tokens read that, too, but its masks would be cut off."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory that it keeps: most parts share one storage."""
        storages = {t.untyped_storage().data_ptr(): t for t in vars(self).values()}
        return sum(t.untyped_storage().nbytes() for t in storages.values())


@dataclass(frozen=True)
class FactoredMasks:
    """B prompts decoded, as far as `iou_predictions`; each prompt's masks are made when asked.

    Attributes:
        iou_predictions: B×4; of the single mask, then of the three for ambiguous prompts.
    """

    iou_predictions: torch.Tensor
    _decoder: FactoredDecoder
    _image: PreparedImage
    _hyper: torch.Tensor  # B×4×32, the weights that make masks of the upscaled keys
    _attention: torch.Tensor  # B×2J×N: d₀·A₀ and below it A₁
    _u: torch.Tensor  # B×2J×256: U₀γ₀ and below it U₁
    _d0: torch.Tensor  # B×N
    _d1: torch.Tensor  # B×N

    @torch.inference_mode()
    def low_res_masks(self, prompt: int, channels: slice | list[int]) -> torch.Tensor:
        """C×4h×4w logits of one prompt: those of its four masks that are asked for."""
        return self._decoder.upscale(*self._inputs(prompt, channels))

    @torch.inference_mode()
    def of_several(self, prompts: list[int], channels: slice) -> torch.Tensor:
        """K×C×4h×4w logits of several prompts, made at once."""
        masks: torch.Tensor = self._decoder.upscaler(*self._inputs(prompts, channels))
        return masks

    def _inputs(self, prompts: int | list[int], channels: slice | list[int]) -> _UpscalerInputs:
        """What `Upscaler.forward` takes."""
        return (
            self._image.upscaled,
            self._covered(self._attention[prompts]),
            self._u[prompts] @ self._decoder.up,
            self._covered(self._d0[prompts]),
            self._covered(self._d1[prompts]),
            self._hyper[prompts, channels],
        )

    def _covered(self, of_pixels: torch.Tensor) -> torch.Tensor:
        """…×N -> …×h×w, the part that the image covers."""
        height, width = self._image.upscaled.shape[:2]
        grid = of_pixels.view(*of_pixels.shape[:-1], _SIDE, _SIDE)
        return grid[..., :height, :width].contiguous()


class FactoredDecoder:
    """The rewritten decoder of one model.

    Args:
        model: a `Sam` of any type; its decoder's weights are read now, not later.
        upscale: what runs in the place of its `Upscaler`.
        at_once: prompts whose pixels are computed together; those of a call if not given.
    """

    @torch.inference_mode()
    def __init__(
        self, model: Sam, upscale: Upscaling | None = None, at_once: int | None = None
    ) -> None:
        self.device: torch.device = model.device
        self.at_once = at_once
        self.decoder = decoder = model.mask_decoder
        self.transformer = decoder.transformer
        layer0, layer1 = self.transformer.layers
        final = self.transformer.final_attn_token_to_image
        t0, t1 = layer0.cross_attn_token_to_image, layer1.cross_attn_token_to_image
        i0, i1 = layer0.cross_attn_image_to_token, layer1.cross_attn_image_to_token
        self.heads = t0.num_heads
        self.head_width = t0.internal_dim // t0.num_heads
        self.epsilon = (layer0.norm4.eps, layer1.norm4.eps)

        # Composed in double precision, so that the composition itself rounds nothing; and on the
        # CPU, for not every device has that.
        pe = _double(model.prompt_encoder.get_dense_pe())[0].flatten(1)  # 256×N
        no_mask = _double(model.prompt_encoder.no_mask_embed.weight)[0]
        width = len(no_mask)
        centre = torch.eye(width, dtype=torch.double) - 1 / width
        gamma0, beta0 = torch.diag(_double(layer0.norm4.weight)), _double(layer0.norm4.bias)
        gamma1, beta1 = torch.diag(_double(layer1.norm4.weight)), _double(layer1.norm4.bias)
        scaled = centre @ gamma0 @ centre  # E centred -> Eγ₀ centred
        out0, out1 = _double(i0.out_proj.weight), _double(i1.out_proj.weight)
        c = centre @ (beta0 + _double(i1.out_proj.bias))
        convolution = _double(decoder.output_upscaling[0].weight)
        up = convolution.permute(2, 3, 1, 0).reshape(-1, width)  # (dy, dx, channel)×256
        up_bias = _double(decoder.output_upscaling[0].bias).repeat(4)
        k0, v0, q0 = t0.k_proj, t0.v_proj, i0.q_proj

        # What is linear in the features, one matrix for all of it but what is packed anew, in
        # `prepare`'s order. The features lack `no_mask`; what is centred has layer 0's bias in
        # it too.
        shift = no_mask + _double(i0.out_proj.bias)

        def plain(part: nn.Linear) -> _Affine:
            return _double(part.weight), _with_bias(part, no_mask[:, None])

        def centred(matrix: torch.Tensor) -> _Affine:
            return matrix @ centre, (matrix @ centre @ shift)[:, None]

        as_it_is = [
            plain(k0),
            plain(q0),
            centred(_double(t1.k_proj.weight) @ gamma0),
            centred(_double(i1.q_proj.weight) @ gamma0),
            centred(_double(final.k_proj.weight) @ gamma1 @ scaled),
            centred(out0.T),
            centred(torch.cat([out0.T @ centre @ gamma0, out1.T]) @ scaled),
            centred(2 * (c @ scaled)[None]),
        ]
        packed_anew = [
            plain(v0),
            centred(_double(t1.v_proj.weight) @ gamma0),
            centred(_double(final.v_proj.weight) @ gamma1 @ scaled),
            centred(up @ gamma1 @ scaled),
        ]
        self.of_image = [self._stacked(as_it_is), self._stacked(packed_anew)]
        self.rows = [[len(matrix) for matrix, _ in part] for part in (as_it_is, packed_anew)]
        self.image_pe_k0 = self._single(_double(k0.weight) @ pe)
        self.image_pe_q0 = self._single(_double(q0.weight) @ pe)
        self.to_norm0 = (self._single(centre), self._single(centre @ shift)[:, None])
        self.to_norm1 = (self._single(scaled), self._single(scaled @ shift)[:, None])

        # What the position encoding, β and the biases give to scores, H×16×N.
        self.pe_t1 = self._by_head(_with_bias(t1.k_proj, beta0[:, None] + pe))
        self.pe_i1 = self._by_head(_with_bias(i1.q_proj, beta0[:, None] + pe))
        self.pe_final = self._by_head(_with_bias(final.k_proj, beta1[:, None] + pe))
        # And to values, H×1×16.
        self.bias_t1 = self._by_head(_with_bias(t1.v_proj, beta0[:, None])).mT
        self.bias_final = self._by_head(_with_bias(final.v_proj, beta1[:, None])).mT

        # Maps on the tokens' side, H×16×256: values -> U; queries -> what they read of the
        # keys; and, from U's side, keys' sums -> values.
        self.to_u0 = self._by_head((centre @ out0).T)
        self.to_u0_scaled = self._by_head((centre @ gamma0 @ centre @ out0).T)
        self.to_u1 = self._by_head((centre @ out1).T)
        self.read_t1 = self._by_head(_double(t1.k_proj.weight) @ gamma0)
        self.sum_t1 = self._by_head(_double(t1.v_proj.weight) @ gamma0).mT
        self.read_i1 = self._by_head(_double(i1.q_proj.weight) @ gamma0)
        self.read_final = self._by_head(_double(final.k_proj.weight) @ gamma1)
        self.sum_final = self._by_head(_double(final.v_proj.weight) @ gamma1).mT
        self.c = self._single(c)
        self.c_norm = float(c @ c)
        self.read_final_c = self.read_final @ self.c  # H×16
        self.sum_final_c = self.c @ self.sum_final  # H×16

        self.up = self._single((up @ gamma1).T)
        self.upscaler = Upscaler(
            decoder, self._single(up @ gamma1 @ c), self._single(up @ beta1 + up_bias)
        )
        self.upscale = upscale or self.upscaler.in_strips

    @torch.inference_mode()
    def prepare(self, features: torch.Tensor, input_size: tuple[int, int]) -> PreparedImage:
        """The image's part.

        Args:
            features: 1×256×64×64, the encoder's output.
            input_size: (height, width) of what the image covers of the network's input.
        """
        height, width = map(embedded, input_size)
        pixels = features[0].flatten(1)
        # Apart, for what is packed anew would otherwise be kept twice.
        (*keys, along_c), (*values, upscaled) = (
            torch.split(torch.addmm(bias, matrix, pixels), rows)
            for (matrix, bias), rows in zip(self.of_image, self.rows, strict=True)
        )
        k0, q0, k1, q1, k_final, u0, u = map(self._heads, keys)
        v0, v1, v_final = (self._heads(part).mT.contiguous() for part in values)
        k0.view_as(self.image_pe_k0).add_(self.image_pe_k0)
        q0.view_as(self.image_pe_q0).add_(self.image_pe_q0)
        norms = [
            torch.addmm(shift, matrix, pixels).square_().sum(0)
            for matrix, shift in (self.to_norm0, self.to_norm1)
        ]
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
            norm0=norms[0],
            norm1=norms[1],
            along_c=along_c[0],
            upscaled=upscaled.view(-1, _SIDE, _SIDE)[:, :height, :width]
            .permute(1, 2, 0)
            .contiguous(),
        )

    @torch.inference_mode()
    def decode(self, image: PreparedImage, sparse: torch.Tensor) -> FactoredMasks:
        """Decode B prompts.

        Args:
            sparse: B×n×256, the prompt encoder's sparse embeddings.
        """
        decoder, (layer0, layer1) = self.decoder, self.transformer.layers
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        tokens_pe = torch.cat([own.expand(len(sparse), -1, -1), sparse], dim=1)
        state = _State.empty(len(sparse), self.heads * tokens_pe.shape[1], image)

        tokens = layer0.norm1(layer0.self_attn(tokens_pe, tokens_pe, tokens_pe))
        tokens = self._read_layer0(image, tokens, tokens_pe)
        v0, u0 = self._write_layer0(image, tokens, tokens_pe, state)

        with_pe = tokens + tokens_pe
        tokens = layer1.norm1(tokens + layer1.self_attn(with_pe, with_pe, tokens))
        tokens = self._read_layer1(image, tokens, tokens_pe, u0, state)
        u = self._write_layer1(image, tokens, tokens_pe, v0, u0, state)
        # From here on tokens don't see each other, and the prompt's are not asked for.
        count = len(own)
        tokens = self._read_final(image, tokens[:, :count], tokens_pe[:, :count], u, state)

        masks = tokens[:, 1:]
        mlps = decoder.output_hypernetworks_mlps
        return FactoredMasks(
            iou_predictions=decoder.iou_prediction_head(tokens[:, 0]),
            _decoder=self,
            _image=image,
            _hyper=torch.stack([mlp(masks[:, i]) for i, mlp in enumerate(mlps)], dim=1),
            _attention=state.attention,
            _u=u,
            _d0=state.d0,
            _d1=state.d1,
        )

    # --- Tokens read from the image ("token to image"), and write to it ("image to token").
    # A slice of the prompts at a time where pixels are involved: b×J×N scores.

    def _slices(self, prompts: torch.Tensor) -> Iterator[slice]:
        at_once = self.at_once or len(prompts)
        return (slice(i, i + at_once) for i in range(0, len(prompts), at_once))

    def _read_layer0(
        self, image: PreparedImage, tokens: torch.Tensor, tokens_pe: torch.Tensor
    ) -> torch.Tensor:
        layer = self.transformer.layers[0]
        attention = layer.cross_attn_token_to_image
        read = torch.empty_like(queries := self._for_scores(attention.q_proj, tokens + tokens_pe))
        for s in self._slices(queries):
            scores = _times(queries[s], image.keys_t0).softmax(-1)
            read[s] = _times(scores, image.values_t0)
        return self._after_read(layer, attention, tokens, read)

    def _write_layer0(
        self, image: PreparedImage, tokens: torch.Tensor, tokens_pe: torch.Tensor, state: _State
    ) -> tuple[torch.Tensor, torch.Tensor]:
        attention = self.transformer.layers[0].cross_attn_image_to_token
        keys = self._for_scores(attention.k_proj, tokens + tokens_pe)
        values = self._split(attention.v_proj(tokens))
        u0 = (values @ self.to_u0).flatten(1, 2)
        gram = u0 @ u0.mT
        width = u0.shape[2]
        for s in self._slices(keys):
            a0 = _times(keys[s], image.queries_i0).softmax(2).flatten(1, 2)
            cross = _times(2 * values[s], image.onto_u0).flatten(1, 2)
            norm = cross.baddbmm_(gram[s], a0).mul_(a0).sum(1).add_(image.norm0)
            torch.rsqrt(norm / width + self.epsilon[0], out=state.d0[s])
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
        layer = self.transformer.layers[1]
        attention = layer.cross_attn_token_to_image
        queries = self._for_scores(attention.q_proj, tokens + tokens_pe)
        through_u = (queries @ self.read_t1).flatten(1, 2) @ u0.mT
        read = torch.empty_like(queries)
        for s in self._slices(queries):
            d0, a0 = state.d0[s, None], state.a0(s)
            scores = _times(queries[s], image.keys_t1).mul_(d0[:, None])
            scores.flatten(1, 2).baddbmm_(through_u[s], a0)
            weights = _plus_times(scores, queries[s], self.pe_t1).softmax(-1)
            sums = (weights.flatten(1, 2) @ a0.mT @ u0[s]).view(*weights.shape[:3], -1)
            read[s] = _times(weights.mul_(d0[:, None]), image.values_t1)
            read[s] += _times(sums, self.sum_t1) + self.bias_t1
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
        attention = self.transformer.layers[1].cross_attn_image_to_token
        j, width = u0.shape[1:]
        keys = self._for_scores(attention.k_proj, tokens + tokens_pe)
        values = self._split(attention.v_proj(tokens))
        through_u = (keys @ self.read_i1).flatten(1, 2) @ u0.mT
        u = torch.cat(
            [(v0 @ self.to_u0_scaled).flatten(1, 2), (values @ self.to_u1).flatten(1, 2)], 1
        )
        gram, along_c = u @ u.mT, 2 * (u @ self.c)
        # As ‖A₀U₀ + A₁U₁‖² is A₀(U₀U₀ᵀ)A₀ᵀ + 2·A₀(U₀U₁ᵀ)A₁ᵀ + A₁(U₁U₁ᵀ)A₁ᵀ, a quarter of it is
        # not needed.
        gram[:, :j, j:] *= 2
        both = 2 * torch.cat([v0, values], dim=1)
        for s in self._slices(keys):
            d0, a = state.d0[s], state.attention[s]
            scores = _times(keys[s], image.queries_i1).mul_(d0[:, None, None])
            scores.flatten(1, 2).baddbmm_(through_u[s], state.a0(s))
            scores = _plus_times(scores, keys[s], self.pe_i1)
            torch.softmax(scores, 2, out=a[:, j:].view_as(scores))

            cross = _times(both[s], image.onto_u).flatten(1, 2)
            cross.mul_(d0[:, None]).add_(along_c[s, :, None])
            cross[:, :j].baddbmm_(gram[s, :j], a)
            cross[:, j:].baddbmm_(gram[s, j:, j:], a[:, j:])
            norm = cross.mul_(a).sum(1).add_(self.c_norm)
            norm += d0 * (d0 * image.norm1 + image.along_c)
            torch.rsqrt(norm / width + self.epsilon[1], out=state.d1[s])
        return u

    def _read_final(
        self,
        image: PreparedImage,
        tokens: torch.Tensor,
        tokens_pe: torch.Tensor,
        u: torch.Tensor,
        state: _State,
    ) -> torch.Tensor:
        attention = self.transformer.final_attn_token_to_image
        queries = self._for_scores(attention.q_proj, tokens + tokens_pe)
        through_u = (queries @ self.read_final).flatten(1, 2) @ u.mT
        along_c = (queries * self.read_final_c[:, None]).sum(-1, keepdim=True)
        read = torch.empty_like(queries)
        for s in self._slices(queries):
            d0, d1, a = state.d0[s, None, None], state.d1[s, None, None], state.attention[s]
            scores = _times(queries[s], image.keys_final).mul_(d0)
            scores.flatten(1, 2).baddbmm_(through_u[s], a)
            scores.add_(along_c[s]).mul_(d1)
            weights = _plus_times(scores, queries[s], self.pe_final).softmax(-1).mul_(d1)
            sums = (weights.flatten(1, 2) @ a.mT @ u[s]).view(*weights.shape[:3], -1)
            constant = weights.sum(-1, keepdim=True) * self.sum_final_c[:, None]
            read[s] = _times(weights.mul_(d0), image.values_final)
            read[s] += _times(sums, self.sum_final) + constant + self.bias_final
        read_out = attention.out_proj(self._merge(read))
        tokens = self.transformer.norm_final_attn(tokens + read_out)
        return tokens

    def _after_read(
        self, layer: Any, attention: Any, tokens: torch.Tensor, read: torch.Tensor
    ) -> torch.Tensor:
        """The rest of a layer's token side."""
        tokens = layer.norm2(tokens + attention.out_proj(self._merge(read)))
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        return tokens

    def _for_scores(self, projection: nn.Linear, tokens: torch.Tensor) -> torch.Tensor:
        """The tokens' queries or keys, B×H×T×16, with the scores' scale in them."""
        scaled: torch.Tensor = self._split(projection(tokens)) * self.head_width**-0.5
        return scaled

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        """B×T×128 -> B×H×T×16."""
        return tokens.view(*tokens.shape[:2], self.heads, self.head_width).transpose(1, 2)

    def _merge(self, by_head: torch.Tensor) -> torch.Tensor:
        return by_head.transpose(1, 2).flatten(2)

    def _by_head(self, matrix: torch.Tensor) -> torch.Tensor:
        """128×M double -> H×16×M."""
        return self._single(matrix).view(self.heads, self.head_width, -1)

    def _heads(self, rows: torch.Tensor) -> torch.Tensor:
        """128×N -> H×16×N."""
        return rows.view(-1, self.head_width, rows.shape[1])

    def _stacked(self, maps: Sequence[_Affine]) -> _Affine:
        """Several maps of the features as one."""
        matrices, biases = zip(*maps, strict=True)
        return self._single(torch.cat(matrices)), self._single(torch.cat(biases))

    def _single(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.float().contiguous().to(self.device)


class Upscaler(nn.Module):
    """keys₂ through the transposed convolutions: mask logits.

    Pixel-major, for a transposed convolution of 2×2 steps is a linear map of each pixel.

    Args:
        decoder: the reference's.
        c, bias: what c and β₁ with the first convolution's bias come to, 256 each.
    """

    c: torch.Tensor
    bias: torch.Tensor
    weight2: torch.Tensor
    bias2: torch.Tensor

    def __init__(self, decoder: Any, c: torch.Tensor, bias: torch.Tensor) -> None:
        super().__init__()
        second = decoder.output_upscaling[3]
        self.norm = decoder.output_upscaling[1]
        self.register_buffer("c", c)
        self.register_buffer("bias", bias)
        self.register_buffer("weight2", second.weight.permute(0, 2, 3, 1).flatten(1).contiguous())
        self.register_buffer("bias2", second.bias.repeat(4))

    def forward(
        self,
        upscaled: torch.Tensor,
        attention: torch.Tensor,
        u: torch.Tensor,
        d0: torch.Tensor,
        d1: torch.Tensor,
        hyper: torch.Tensor,
    ) -> torch.Tensor:
        """A prompt's masks; or B prompts', then B× before all but `upscaled`.

        Args:
            upscaled: h×w×256, the image's part.
            attention: 2J×h×w.
            u: 2J×256, through the first convolution.
            d0, d1: h×w.
            hyper: C×32.

        Returns:
            C×4h×4w logits.
        """
        height, width = d0.shape[-2:]
        x = upscaled.flatten(0, 1) * d0.flatten(-2)[..., None] + attention.flatten(-2).mT @ u
        x = (x + self.c) * d1.flatten(-2)[..., None] + self.bias
        x = x.view(-1, 64)  # a row for each of a pixel's four
        x = F.layer_norm(x, (64,), self.norm.weight, self.norm.bias, self.norm.eps)
        x = F.gelu(F.gelu(x) @ self.weight2 + self.bias2)
        logits = hyper @ x.view(*hyper.shape[:-2], -1, 32).mT
        # Each pixel's 16 lie together, (dy, dx) of the first convolution, then of the second.
        logits = logits.view(-1, height, width, 2, 2, 2, 2)
        masks = logits.permute(0, 1, 3, 5, 2, 4, 6)
        return masks.reshape(*hyper.shape[:-1], 4 * height, 4 * width)

    def in_strips(
        self,
        upscaled: torch.Tensor,
        attention: torch.Tensor,
        u: torch.Tensor,
        d0: torch.Tensor,
        d1: torch.Tensor,
        hyper: torch.Tensor,
    ) -> torch.Tensor:
        """`forward` a strip at a time, so that nothing leaves the processor's cache."""
        height, width = d0.shape
        step = max(1, _STRIP // width)
        strips = [slice(i, i + step) for i in range(0, height, step)]
        return torch.cat(
            [self(upscaled[s], attention[:, s], u, d0[s], d1[s], hyper) for s in strips], dim=1
        )


@dataclass(frozen=True)
class _State:
    """What the image tokens have become, for B prompts."""

    attention: torch.Tensor  # B×2J×N
    d0: torch.Tensor  # B×N
    d1: torch.Tensor  # B×N

    @classmethod
    def empty(cls, prompts: int, j: int, image: PreparedImage) -> _State:
        pixels = image.norm0
        return cls(
            attention=pixels.new_empty(prompts, 2 * j, len(pixels)),
            d0=pixels.new_empty(prompts, len(pixels)),
            d1=pixels.new_empty(prompts, len(pixels)),
        )

    def a0(self, prompts: slice) -> torch.Tensor:
        """d₀·A₀ of some prompts, b×J×N."""
        return self.attention[prompts, : self.attention.shape[1] // 2]


def _times(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """b×H×T×m @ H×m×n, the right side the same for all prompts: one product a head.

    For one prompt nothing is moved in memory, before or after.
    """
    return _unfolded(torch.bmm(_folded(left), right), len(left))


def _plus_times(sums: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """b×H×T×n + `_times`, in the memory of `sums` where that is one prompt's."""
    return _unfolded(_folded(sums).baddbmm_(_folded(left), right), len(left))


def _folded(by_prompt: torch.Tensor) -> torch.Tensor:
    """b×H×T×m -> H×bT×m."""
    return by_prompt.transpose(0, 1).flatten(1, 2)


def _unfolded(by_head: torch.Tensor, prompts: int) -> torch.Tensor:
    """H×bT×n -> b×H×T×n."""
    heads, _, n = by_head.shape
    return by_head.view(heads, prompts, -1, n).transpose(0, 1).contiguous()


def embedded(input_side: int) -> int:
    """How many of the embedding's pixels a side of the image takes, with those that are only
    read between: the image's last pixels read up to two logits beyond their own."""
    logits = -(-input_side // 4) + 2
    return min(-(-logits // 4), _SIDE)


def _double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().double()


def _with_bias(linear: nn.Linear, columns: torch.Tensor) -> torch.Tensor:
    return _double(linear.weight) @ columns + _double(linear.bias)[:, None]
