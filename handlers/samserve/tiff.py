"""What a TIFF says of itself, and where Pillow must not be believed about it.

Pillow turns TIFFs, reads some samples with the wrong sign or range, and decodes some
layouts into another picture than the file holds. Here each is put right or refused.

Decodes nothing itself, and knows no other format: `images` asks it about TIFFs only.
"""

from __future__ import annotations

import contextlib
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

# Pillow turns a TIFF by its orientation while it loads; this turns it back.
_TURNED_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_ORIENTATION = 274  # in EXIF as in TIFF, whose other tags follow
_BITS = 258
_COMPRESSION = 259
_PHOTOMETRIC = 262
_FILL_ORDER = 266
_SAMPLES = 277
_PLANAR = 284
_TILE_WIDTH = 322
_TILE_LENGTH = 323
_SAMPLE_FORMAT = 339
_SUBSAMPLING = 530


def refusal(image: TiffImageFile, max_pixels: int) -> str | None:
    """Why Pillow must not decode this opened TIFF although it would, or None."""
    tags = image.tag_v2
    # libtiff allocates a whole tile, however small the picture in it.
    tile_pixels = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
    if tile_pixels > max_pixels:
        return f"the TIFF's tiles are of {tile_pixels} pixels; the limit is {max_pixels} pixels"
    bits = set(tags.get(_BITS, (1,)))
    if bits == {8} and 2 in tags.get(_SAMPLE_FORMAT, (1,)):
        return "TIFF with signed 8-bit samples is not read"
    if image.tile[0][0] == "libtiff":
        return None

    # Without libtiff, Pillow trusts the strips: missing ones leave black, surplus
    # ones are decoded again and again.
    planes = tags.get(_SAMPLES, 1) if tags.get(_PLANAR) == 2 else 1
    covered = sum(
        (right - left) * (bottom - top)
        for _, extents, *_ in image.tile
        if extents is not None
        for left, top, right, bottom in [extents]
    )
    if covered != planes * image.size[0] * image.size[1]:
        return "the TIFF is damaged: its strips or tiles do not cover the picture just once"
    # … and reads these as something else.
    plain = bits == {8} and tags.get(_FILL_ORDER, 1) == 1 and tags.get(_PHOTOMETRIC) != 0
    if tags.get(_PLANAR) == 2 and not plain:
        return "uncompressed TIFF with separate planes is read with plain 8-bit samples only"
    # (Pillow 12, the last for Python 3.10, takes YCbCr for RGB.)
    full_ycbcr = image.mode == "YCbCr" and tags.get(_SUBSAMPLING, (2, 2)) == (1, 1)
    if tags.get(_PHOTOMETRIC) == 6 and not full_ycbcr:
        return "uncompressed TIFF in YCbCr is read without subsampling only, by Pillow 13 or later"
    return None


def load_as_stored(image: TiffImageFile) -> Image.Image:
    """Decodes the opened TIFF; rows and columns as stored, whatever its orientation says."""
    # Read first: loading forgets it.
    turned_back = _TURNED_BACK.get(image.getexif().get(_ORIENTATION, 1))
    image.load()
    return image if turned_back is None else image.transpose(turned_back)


def grey_values(image: TiffImageFile, values: NDArray[Any]) -> NDArray[Any]:
    """Pillow's array of a wide grey TIFF -> the values the file means, dark to light."""
    tags = image.tag_v2
    # Pillow has no unsigned 32 bits and reads them as signed ones …
    if tags.get(_BITS) == (32,) and tags.get(_SAMPLE_FORMAT, (1,)) == (1,):
        values = values.view(np.uint32)
    # … and inverts white-is-zero in 8 bits only.
    if tags.get(_PHOTOMETRIC) == 0:
        return -values.astype(np.float64)
    return values


def layout(data: bytes) -> str:
    """What the TIFF says of its pixels, as the end of a sentence; may be empty."""
    # Only to say more about an image that is refused already.
    with contextlib.suppress(Exception):
        header = data[:16] if data[2:4] in (b"+\0", b"\0+") else data[:8]
        tags = ImageFileDirectory_v2(header)
        stream = BytesIO(data)
        stream.seek(tags.next)
        tags.load(stream)
        found = {
            "samples": tags.get(_SAMPLES, 1),
            "bits": tags.get(_BITS, (1,)),
            "sample format": tags.get(_SAMPLE_FORMAT, (1,)),
            "photometric": tags.get(_PHOTOMETRIC),
            "planar": tags.get(_PLANAR, 1),
            "compression": tags.get(_COMPRESSION, 1),
        }
        return " (" + ", ".join(f"{name} {value!s:.40}" for name, value in found.items()) + ")"
    return ""
