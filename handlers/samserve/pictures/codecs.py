"""This module imports imagecodecs when the first picture needs it.

A client that only reads sizes and pages does without imagecodecs, which has 20 MB.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .tiff_directory import Unreadable


@cache
def codec(name: str) -> Callable[..., Any]:
    """Return the function of imagecodecs with this name, as `lzw_decode`.

    Raises:
        Unreadable: imagecodecs is not installed.
    """
    try:
        import imagecodecs
    except ModuleNotFoundError as exc:
        raise Unreadable(
            "this picture's pixels are compressed in a way that needs the package imagecodecs: "
            "pip install imagecodecs"
        ) from exc
    decoder: Callable[..., Any] = getattr(imagecodecs, name)
    return decoder
