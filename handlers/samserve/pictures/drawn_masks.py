"""This module converts a mask that a client draws into the logits of a SAM mask prompt.

SAM's `mask_input` has the form of its `low_res_masks`: 256×256 logits over the network's input
frame, at a quarter of that frame's resolution. A drawn mask is binary. Each of the 256×256 cells
gets the share of its pixels that belong to the object, and the logit of that share.

The share is clipped to 0.001..0.999, as micro-sam does. The logits are then within ±6.9, the range
of the network's own logits, so the network can still disagree with the prompt.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from samserve.errors import InvalidField

from .base64_text import decode_base64
from .decoding import Decode, decode_page

SIDE = 256
_PIXELS_PER_CELL = 4  # along a side, in pixels of the network's input
_MIN_SHARE = 1e-3


def mask_input(
    text: str,
    original_size: tuple[int, int],
    input_size: tuple[int, int],
    max_pixels: int,
    field: str,
    decode: Decode = decode_page,
) -> NDArray[np.float32]:
    """Return the 256×256 logits of a mask, as `SamPredictor.predict` takes them in `mask_input`.

    Args:
        text: base64 of an image file that has the size of the image, or 256×256 pixels in the
            network's frame. Pixels brighter than half of the brightest one are the object.
        original_size: (height, width) of the image, in pixels.
        input_size: (height, width) of the image resized to the network's input, in pixels.
        max_pixels: the largest number of pixels that is decoded.
        field: the name of the text's field in the request, for errors.
        decode: decodes the file; the default does it in this process, without limits of time.

    Raises:
        SamserveError: the text is no image, or the mask has another size or no object.
    """
    decoded = decode(decode_base64(text, field), max_pixels, field, 0)
    pixels = decoded.pixels.max(axis=2)
    brightest = int(pixels.max())
    if brightest == 0:
        raise InvalidField(f"{field}: the mask is black all over; it shows no object.", field)
    drawn = (pixels > brightest / 2).astype(np.float32)
    if pixels.shape == original_size:
        share = _in_frame(drawn, input_size)
    elif pixels.shape == (SIDE, SIDE):
        share = drawn
    else:
        (height, width), (mask_height, mask_width) = original_size, pixels.shape
        raise InvalidField(
            f"{field}: the mask is {mask_width}x{mask_height}; "
            f"it must be {width}x{height}, the size of the image, or {SIDE}x{SIDE}.",
            field,
        )
    share = share.clip(_MIN_SHARE, 1 - _MIN_SHARE)
    logits: NDArray[np.float32] = np.log(share / (1 - share))
    return logits


def _in_frame(drawn: NDArray[np.float32], input_size: tuple[int, int]) -> NDArray[np.float32]:
    """Return the share of each of the 256×256 cells that a mask of the image's size covers."""
    in_h, in_w = input_size
    shrinks = drawn.shape[0] > in_h
    resized = cv2.resize(
        drawn, (in_w, in_h), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    frame = np.zeros((SIDE * _PIXELS_PER_CELL, SIDE * _PIXELS_PER_CELL), np.float32)
    frame[:in_h, :in_w] = resized
    cells = frame.reshape(SIDE, _PIXELS_PER_CELL, SIDE, _PIXELS_PER_CELL)
    share: NDArray[np.float32] = cells.mean(axis=(1, 3))
    return share
