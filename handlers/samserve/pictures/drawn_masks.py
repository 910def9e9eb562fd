"""A mask that a client draws -> the logits that SAM takes as a mask prompt.

SAM wants what it gives: 256×256 logits over its own input frame (`low_res_masks`), a quarter of
its resolution. A drawn mask is yes or no; a cell of that frame gets the share of its pixels that
are the object's, and the logit of that share is the prompt.

The share is kept away from 0 and 1, as micro-sam does, so that the prompt stays an opinion,
like the network's own logits: 0.001 makes it ±6.9.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from samserve.errors import InvalidField
from samserve.network.encoder import Embedding

from .picture import decode_base64, decode_image

SIDE = 256
_PIXELS_A_CELL = 4  # of the network's input, along a side
_CERTAIN = 1e-3


def mask_input(text: str, embedding: Embedding, max_pixels: int, field: str) -> NDArray[np.float32]:
    """256×256 logits of a mask, `SamPredictor.predict`'s `mask_input`.

    Args:
        text: base64 of an image file: of the image's size, or 256×256 in the network's frame.
            Object is what is brighter than half of the brightest pixel.
        embedding: the image's.
        max_pixels: the most that are decoded.
        field: what the text is called in the request.

    Raises:
        SamserveError: no image, one of another size, or one without an object.
    """
    pixels = decode_image(decode_base64(text, field), max_pixels, field).max(axis=2)
    brightest = int(pixels.max())
    if brightest == 0:
        raise InvalidField(f"{field}: the mask is black all over; it shows no object.", field)
    drawn = (pixels > brightest / 2).astype(np.float32)
    if pixels.shape == embedding.original_size:
        share = _in_frame(drawn, embedding.input_size)
    elif pixels.shape == (SIDE, SIDE):
        share = drawn
    else:
        (height, width), (mask_height, mask_width) = embedding.original_size, pixels.shape
        raise InvalidField(
            f"{field}: the mask is {mask_width}x{mask_height}; "
            f"it must be {width}x{height}, as the image, or {SIDE}x{SIDE}.",
            field,
        )
    share = share.clip(_CERTAIN, 1 - _CERTAIN)
    logits: NDArray[np.float32] = np.log(share / (1 - share))
    return logits


def _in_frame(drawn: NDArray[np.float32], input_size: tuple[int, int]) -> NDArray[np.float32]:
    """The share of each cell of the network's frame that a mask of the image's size covers."""
    in_h, in_w = input_size
    shrinks = drawn.shape[0] > in_h
    resized = cv2.resize(
        drawn, (in_w, in_h), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    frame = np.zeros((SIDE * _PIXELS_A_CELL, SIDE * _PIXELS_A_CELL), np.float32)
    frame[:in_h, :in_w] = resized
    cells = frame.reshape(SIDE, _PIXELS_A_CELL, SIDE, _PIXELS_A_CELL)
    share: NDArray[np.float32] = cells.mean(axis=(1, 3))
    return share
