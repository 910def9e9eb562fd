"""What is used of the reference implementation, imported in one place, and quietly."""

from __future__ import annotations

import warnings

with warnings.catch_warnings():
    # mobile_sam imports timm by its old names and registers TinyViTs that timm
    # has too: seven warnings at every start that no reader of a log can act on.
    warnings.simplefilter("ignore")
    from mobile_sam import sam_model_registry
    from mobile_sam.modeling import ImageEncoderViT, Sam
    from mobile_sam.utils.amg import build_point_grid, generate_crop_boxes, remove_small_regions
    from mobile_sam.utils.transforms import ResizeLongestSide

__all__ = [
    "ImageEncoderViT",
    "ResizeLongestSide",
    "Sam",
    "build_point_grid",
    "generate_crop_boxes",
    "remove_small_regions",
    "sam_model_registry",
]
