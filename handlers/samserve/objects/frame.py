"""A Frame is the picture that objects lie in, as far as the objects need it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .georeference import Georeference


@dataclass(frozen=True)
class Frame:
    """The picture that objects lie in.

    Attributes:
        size: (height, width) in pixels.
        pixels: returns the H×W×3 uint8 RGB pixels, on which the objects are drawn.
        name: the name of the picture's file; an empty text if it has none.
        page: the page of the file.
        georeference: where on the earth the pixels lie; None if the file does not say.
    """

    size: tuple[int, int]
    pixels: Callable[[], NDArray[np.uint8]] = field(repr=False)
    name: str = ""
    page: int = 0
    georeference: Georeference | None = None
