"""The benchmark's pictures, new or known, of any size, and boxes on them."""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import skimage.data
from PIL import Image, ImageOps

Size = tuple[int, int]  # width, height

# These are in scikit-image's wheel, so none is downloaded.
SAMPLES = ("coffee", "astronaut", "chelsea", "immunohistochemistry", "retina", "rocket")
MOSAIC = "mosaic"

STAMP = 8  # pixels per side: still visible after the resize before the encoder


@dataclass(frozen=True)
class Request:
    """A request about a picture.

    Attributes:
        image: base64 of the picture's PNG.
        fields: the other fields of the body.
    """

    image: str
    fields: dict[str, Any]

    def body(self) -> bytes:
        """Return the JSON body that a client sends."""
        return json.dumps({"type": "vit_t", **self.fields, "b64img": self.image}).encode()


def pictures(paths: list[Path], size: Size) -> dict[str, Image.Image]:
    """Return name -> picture of this size: the user's, or five of scikit-image's and a mosaic."""
    if paths:
        return {str(path): _fitted(Image.open(path), size) for path in paths}
    samples = [Image.fromarray(getattr(skimage.data, name)()) for name in SAMPLES]
    fitted = {
        name: _fitted(sample, size) for name, sample in zip(SAMPLES[:5], samples[:5], strict=True)
    }
    fitted[MOSAIC] = _mosaic(samples, size)
    return fitted


def picture(paths: list[Path], size: Size) -> Image.Image:
    """Return the picture for measuring times: the user's first, or the mosaic."""
    return next(reversed(pictures(paths[:1], size).values()))


def _fitted(image: Image.Image, size: Size) -> Image.Image:
    """Cut the picture's middle to the size's proportions, and resize it."""
    return ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)


def _mosaic(tiles: list[Image.Image], size: Size) -> Image.Image:
    """Return one picture of six, three by two, without gaps."""
    whole = Image.new("RGB", size)
    columns = [round(size[0] * i / 3) for i in range(4)]
    rows = [round(size[1] * i / 2) for i in range(3)]
    for index, tile in enumerate(tiles):
        left, right = columns[index % 3 : index % 3 + 2]
        top, bottom = rows[index // 3 : index // 3 + 2]
        whole.paste(_fitted(tile, (right - left, bottom - top)), (left, top))
    return whole


def stamped(image: Image.Image, number: int) -> Image.Image:
    """Return the picture with a number as its corner's colour, so that no cache can hold it."""
    marked = image.copy()
    color = (number % 256, number // 256 % 256, number // 65536 % 256)
    marked.paste(color, (0, 0, STAMP, STAMP))
    return marked


def named(size: Size) -> str:
    """Return a size as `512x512`."""
    return f"{size[0]}x{size[1]}"


def base64_png(image: Image.Image) -> str:
    png = io.BytesIO()
    image.save(png, "PNG", compress_level=4)  # as small as level 6, in a third of the time
    return base64.b64encode(png.getvalue()).decode()


def random_boxes(size: Size, count: int, seed: int = 0) -> list[list[int]]:
    """Return random boxes, whose sides are an eighth to a half of the picture's."""
    rng = np.random.default_rng(seed)
    boxes = []
    for _ in range(count):
        width, height = (int(rng.integers(side // 8, side // 2)) for side in size)
        left = int(rng.integers(0, size[0] - width))
        top = int(rng.integers(0, size[1] - height))
        boxes.append([left, top, left + width, top + height])
    return boxes
