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

from samserve.errors import InvalidField, TooLarge

from .base64_text import decode_base64
from .decoding import Decode, decode_page

SIDE = 256
_PIXELS_PER_CELL = 4  # along a side, in pixels of the network's input
_MIN_SHARE = 1e-3
_PIXELS_AT_ONCE = 2**18  # so many fit into the processor's cache


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
    height, width = original_size
    wanted = f"it must be {width}x{height}, the size of the image, or {SIDE}x{SIDE}."
    most = max(height * width, SIDE * SIDE)
    try:
        # Its header says how large it is, so that nothing larger is decoded.
        decoded = decode(decode_base64(text, field), min(most, max_pixels), field, 0)
    except TooLarge as exc:
        if most > max_pixels:
            raise
        too_large = exc.message.replace("the image", "the mask")
        raise InvalidField(f"{field}: {too_large}; {wanted}", field) from exc
    pixels = decoded.pixels
    mask_height, mask_width, _ = pixels.shape
    if (mask_height, mask_width) not in (original_size, (SIDE, SIDE)):
        raise InvalidField(f"{field}: the mask is {mask_width}x{mask_height}; {wanted}", field)
    brightest = int(pixels.max())
    if brightest == 0:
        raise InvalidField(f"{field}: the mask is black all over; it shows no object.", field)
    drawn = _brighter(pixels, brightest // 2)
    share = _in_frame(drawn, input_size) if drawn.shape == original_size else drawn
    share = share.clip(_MIN_SHARE, 1 - _MIN_SHARE)
    logits: NDArray[np.float32] = np.log(share / (1 - share))
    return logits


def _brighter(pixels: NDArray[np.uint8], than: int) -> NDArray[np.float32]:
    """Return 1 where a channel is brighter than this, else 0."""
    drawn = np.empty(pixels.shape[:2], np.float32)
    rows = max(1, _PIXELS_AT_ONCE // pixels.shape[1])
    for first in range(0, len(pixels), rows):
        # OpenCV takes a tenth of the time that NumPy takes for the largest of three.
        red, green, blue = np.moveaxis(pixels[first : first + rows], 2, 0)
        drawn[first : first + rows] = cv2.max(cv2.max(red, green), blue) > than
    return drawn


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
