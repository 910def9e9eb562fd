# Follows sam2's modeling/backbones and modeling/sam (Apache-2.0):
# Copyright (c) Meta Platforms, Inc. and affiliates.
"""This module is SAM 2's network for images: Hiera, the feature pyramid, prompts and masks.

Source: Ravi et al., SAM 2: Segment Anything in Images and Videos, 2024, arXiv:2408.00714, and the
package `sam2`. All tensors have the names that they have in its checkpoints. The parts that only
videos need are left out. SAM 2.0 and 2.1 are the same network here.

The prompt encoder is segment-anything's. The mask decoder is, too, with one more token and with two
maps of the image that are added while the masks are upscaled.

`hiera.py` runs the image encoder. This package does not need `sam2` itself: it is not built for
installation beside other packages, and its video parts need more packages still.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from .originals import MLP, MaskDecoder, PromptEncoder, TwoWayTransformer

WIDTH = 256
"""The channels of the embedding, of the tokens and of the feature pyramid."""

INPUT_SIDE = 1024
"""Width and height of the network's input in pixels."""

SIDE = 64
"""Width and height of the embedding."""

FIRST_STAGE_SIDE = INPUT_SIDE // 4
"""Width and height of the first stage in tokens."""


@dataclass(frozen=True)
class HieraShape:
    """The sizes of one of SAM 2's image encoders.

    Attributes:
        width: the channels of the first stage. Each further stage has twice as many.
        heads: the attention heads of the first stage. Each further stage has twice as many.
        blocks: the number of blocks of each of the four stages.
        windows: the side of the attention windows of each stage, in tokens.
        global_blocks: the blocks that attend to the whole image.
        positions: the side of the table of positions, which is enlarged to the first stage's side.
    """

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, int, int]
    windows: tuple[int, int, int, int] = (8, 4, 14, 7)
    positions: int = 7

    @property
    def widths(self) -> list[int]:
        """The channels of the four stages."""
        return [self.width << stage for stage in range(4)]


SHAPES = {
    "sam2_t": HieraShape(96, 1, (1, 2, 7, 2), (5, 7, 9)),
    "sam2_s": HieraShape(96, 1, (1, 2, 11, 2), (7, 10, 13)),
    "sam2_bp": HieraShape(112, 2, (2, 3, 16, 3), (12, 16, 20), positions=14),
    "sam2_l": HieraShape(144, 2, (2, 6, 36, 4), (23, 33, 43), windows=(8, 4, 16, 8)),
}
"""The image encoders by model type."""

VIDEO_PARTS = (
    *("memory_attention.", "memory_encoder.", "mask_downsample.", "maskmem_tpos_enc"),
    *(
        "no_mem_pos_enc",
        "no_obj_ptr",
        "no_obj_embed_spatial",
        "obj_ptr_proj.",
        "obj_ptr_tpos_proj.",
    ),
    "sam_mask_decoder.pred_obj_score_head.",
)
"""The beginnings of the names of a checkpoint's tensors that this network lacks."""


class Sam2(nn.Module):
    """SAM 2's network for images. The parts have the names of a `segment_anything` network, too."""

    def __init__(self, shape: HieraShape) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(shape)
        self.sam_prompt_encoder = PromptEncoder(
            embed_dim=WIDTH,
            image_embedding_size=(SIDE, SIDE),
            input_image_size=(INPUT_SIDE, INPUT_SIDE),
            mask_in_chans=16,
        )
        self.sam_mask_decoder = Sam2MaskDecoder()
        self.no_mem_embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, WIDTH), std=0.02))

    @property
    def prompt_encoder(self) -> PromptEncoder:
        return self.sam_prompt_encoder

    @property
    def mask_decoder(self) -> Sam2MaskDecoder:
        return self.sam_mask_decoder

    @property
    def device(self) -> torch.device:
        return self.no_mem_embed.device


class ImageEncoder(nn.Module):
    """The weights of the image encoder. `hiera.Hiera` runs it."""

    def __init__(self, shape: HieraShape) -> None:
        super().__init__()
        self.trunk = Trunk(shape)
        # From the last stage to the first.
        convs = [_module(conv=nn.Conv2d(width, WIDTH, 1)) for width in reversed(shape.widths)]
        self.neck = _module(convs=nn.ModuleList(convs))


class Trunk(nn.Module):
    """Hiera's weights: Ryali et al., Hiera, 2023, arXiv:2306.00989."""

    def __init__(self, shape: HieraShape) -> None:
        super().__init__()
        self.patch_embed = _module(proj=nn.Conv2d(3, shape.width, 7, stride=4, padding=3))
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.width, shape.positions, shape.positions))
        window = shape.windows[0]
        self.pos_embed_window = nn.Parameter(torch.zeros(1, shape.width, window, window))
        self.blocks = nn.ModuleList()
        self.stage_ends: list[int] = []
        before = shape.width
        for stage, width in enumerate(shape.widths):
            for block in range(shape.blocks[stage]):
                pools = stage > 0 and block == 0
                # The first block of a stage has the window of the stage before, and halves it.
                window = shape.windows[stage - pools]
                window = 0 if len(self.blocks) in shape.global_blocks else window
                heads = shape.heads << stage
                self.blocks.append(Block(before, width, heads, window, pools))
                before = width
            self.stage_ends.append(len(self.blocks) - 1)


class Block(nn.Module):
    """The weights of a transformer block.

    Args:
        width_in, width: the channels of its input and of its output.
        heads: the number of attention heads.
        window: the side of the attention windows in tokens; 0 for the whole image.
        pools: whether the output has half the height and width of the input.
    """

    def __init__(self, width_in: int, width: int, heads: int, window: int, pools: bool) -> None:
        super().__init__()
        self.heads, self.window, self.pools = heads, window, pools
        self.norm1 = nn.LayerNorm(width_in, eps=1e-6)
        self.attn = _module(qkv=nn.Linear(width_in, 3 * width), proj=nn.Linear(width, width))
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        layers = [nn.Linear(width, 4 * width), nn.Linear(4 * width, width)]
        self.mlp = _module(layers=nn.ModuleList(layers))
        self.proj = nn.Linear(width_in, width) if pools else None


class Sam2MaskDecoder(MaskDecoder):  # type: ignore[misc]
    """segment-anything's mask decoder with SAM 2's token and maps.

    `predict_masks` returns all four masks. `families.Sam2Family` chooses among them.
    """

    def __init__(self) -> None:
        transformer = TwoWayTransformer(depth=2, embedding_dim=WIDTH, mlp_dim=2048, num_heads=8)
        for layer in transformer.layers:
            # The same function as segment-anything's `MLPBlock`, under SAM 2's names.
            layer.mlp = MLP(WIDTH, 2048, WIDTH, 2)
        super().__init__(transformer_dim=WIDTH, transformer=transformer)
        self.iou_prediction_head = MLP(WIDTH, 256, self.num_mask_tokens, 3, sigmoid_output=True)
        self.obj_score_token = nn.Embedding(1, WIDTH)
        self.conv_s0 = nn.Conv2d(WIDTH, WIDTH // 8, 1)
        self.conv_s1 = nn.Conv2d(WIDTH, WIDTH // 4, 1)

    def output_tokens(self) -> torch.Tensor:
        """Return the 6×256 tokens before the prompt's: object score, predicted IoU, four masks."""
        return torch.cat(
            [self.obj_score_token.weight, self.iou_token.weight, self.mask_tokens.weight]
        )

    def predict_masks(
        self,
        image_embeddings: torch.Tensor,
        image_pe: torch.Tensor,
        sparse_prompt_embeddings: torch.Tensor,
        dense_prompt_embeddings: torch.Tensor,
        high_res_features: tuple[torch.Tensor, torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return B×4×256×256 logits, and B×4 predicted IoUs.

        Args:
            image_embeddings: 1×256×64×64.
            image_pe: 1×256×64×64, the positions.
            sparse_prompt_embeddings: B×n×256.
            dense_prompt_embeddings: B×256×64×64.
            high_res_features: 64×128×128 and 32×256×256, from the coarse map to the fine one.
        """
        count = len(sparse_prompt_embeddings)
        tokens = torch.cat(
            [self.output_tokens().expand(count, -1, -1), sparse_prompt_embeddings], dim=1
        )
        source = image_embeddings + dense_prompt_embeddings
        hidden, source = self.transformer(source, image_pe.expand(count, -1, -1, -1), tokens)
        source = source.transpose(1, 2).view(count, WIDTH, SIDE, SIDE)
        first, norm, gelu, second, _ = self.output_upscaling
        coarse, fine = high_res_features
        upscaled = F.gelu(second(gelu(norm(first(source) + coarse))) + fine)
        masks = hidden[:, 2 : 2 + self.num_mask_tokens]
        mlps = self.output_hypernetworks_mlps
        hyper = torch.stack([mlp(masks[:, i]) for i, mlp in enumerate(mlps)], dim=1)
        logits = (hyper @ upscaled.flatten(2)).view(count, -1, *upscaled.shape[2:])
        return logits, self.iou_prediction_head(hidden[:, 1])


def is_video_part(name: str) -> bool:
    """Return whether a tensor of a checkpoint belongs to a part that only videos need."""
    return name.startswith(VIDEO_PARTS)


def _module(**parts: Any) -> nn.Module:
    """Return a module that only holds these parts. It has no `forward`."""
    module = nn.Module()
    for name, part in parts.items():
        setattr(module, name, part)
    return module
