"""A small request that every loaded model can answer.

The `/docs` page shows it as an example, a starting server prints it, and `readiness.py` sends it.
"""

from __future__ import annotations

from typing import Any

# A PNG of 166 bytes: 64x64 pixels, a white disc of radius 16 centred on black.
DISC_PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAEAAAABAAQAAAACCEkxzAAAAbUlEQVR42s3QsRGDQAxE0YdMQIQpgVJckjuA0iiFEi4k"
    "YDgH5wBmICDjR5r9UqDlebwTAt/2n+RckhcTQU1P0NARdDTlirLcUxN8iKMqVGRUJ+ruMJIv1MRGMLMeVWIhWEgEK/Pu"
    "ZRi2fS1P4we9mxVt0n1lfgAAAABJRU5ErkJggg=="
)


def prompt(model_type: str) -> dict[str, Any]:
    """Return a prompt request: a box around the disc."""
    return {"type": model_type, "bbox": [14, 14, 50, 50], "b64img": DISC_PNG}


def automask(model_type: str) -> dict[str, Any]:
    """Return an automask request: a grid of four points."""
    return {"type": model_type, "points_per_side": 2, "b64img": DISC_PNG}
