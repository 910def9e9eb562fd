"""Photographs of scikit-image, and pictures as a client writes them into `b64img`."""

from __future__ import annotations

import base64
import io
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]


def picture(name: str) -> Picture:
    """Return one of scikit-image's photographs, H×W×3 uint8 RGB."""
    import skimage.data  # slow to import, and many tests need no photograph

    pixels = getattr(skimage.data, name)()
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, None], 3, axis=2)


def base64_png(pixels: NDArray[Any]) -> str:
    """Return the pixels as a PNG in base64, as a client puts it into `b64img`."""
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    return base64.b64encode(png.getvalue()).decode()


def new_picture() -> str:
    """Return a picture in base64 that no cache can hold: the time is written into its pixels."""
    pixels = picture("coins").copy()
    pixels[0, :8] = np.frombuffer(np.int64(time.time_ns()).tobytes(), np.uint8)[:, None]
    return base64_png(pixels)
