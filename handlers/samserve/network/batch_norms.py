"""This module folds each BatchNorm of a network into the convolution before it."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def fold_batch_norms(encoder: nn.Module) -> nn.Module:
    """Return a copy without BatchNorm and with channels last; the network itself if it has none."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in encoder.modules()):
        return encoder
    folded = copy.deepcopy(encoder)
    for module in list(folded.modules()):
        for name, child in module.named_children():
            match list(child.children()):
                case [nn.Conv2d() as convolution, nn.BatchNorm2d() as norm]:  # TinyViT's pairs
                    setattr(module, name, fuse_conv_bn_eval(convolution, norm))
    return folded.to(memory_format=torch.channels_last)
