"""Request bodies for the type vit_t."""

from __future__ import annotations

from typing import Any

BOX = [20, 30, 70, 78]
"""The first coin of scikit-image's picture `coins`, as x0, y0, x1, y1."""


def prompt_body(image: str, **fields: Any) -> dict[str, Any]:
    """Return a body for /sam/ that asks for the first coin."""
    return {"type": "vit_t", "bbox": BOX, "b64img": image, **fields}


def automask_body(image: str) -> dict[str, Any]:
    """Return a body for /sam/automask/ with a grid of 2×2 points."""
    return {"type": "vit_t", "points_per_side": 2, "b64img": image}
