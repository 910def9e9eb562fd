"""This module has all imports from `segment_anything` and `mobile_sam`, SAM's original code.

They are in one module for three reasons: the other modules get types instead of the untyped
packages, warnings during the import are silenced in one place, and a reader sees at a glance which
parts of the original code this package uses.

The networks vit_b, vit_l and vit_h are segment_anything's, vit_t is mobile_sam's. SAM 2's are in
`sam2.py`, and use segment_anything's prompt encoder and mask decoder. mobile_sam is a
copy of segment_anything with one more encoder, so everything that both have is imported from
segment_anything.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from segment_anything import sam_model_registry as _segment_anything
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.utils.amg import (
    build_point_grid,
    generate_crop_boxes,
    remove_small_regions,
)
from segment_anything.utils.transforms import ResizeLongestSide


def sam_builder(model_type: str) -> Callable[[], Sam]:
    """Return the function that builds the network of this type with random weights.

    A network of mobile_sam is no instance of `Sam`, but has the same parts under the same names.

    Raises:
        KeyError: the model type is unknown.
    """
    if model_type != "vit_t":
        builder: Callable[[], Sam] = _segment_anything[model_type]
        return builder
    with warnings.catch_warnings():
        # mobile_sam imports timm by its old names, and registers TinyViTs that timm has too. That
        # gives seven warnings at every start that no reader of a log can act on.
        warnings.simplefilter("ignore")
        from mobile_sam import sam_model_registry
    mobile_builder: Callable[[], Sam] = sam_model_registry[model_type]
    return mobile_builder


__all__ = [
    "MLP",
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "ResizeLongestSide",
    "Sam",
    "TwoWayTransformer",
    "build_point_grid",
    "generate_crop_boxes",
    "remove_small_regions",
    "sam_builder",
]
