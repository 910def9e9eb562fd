"""This module writes the logits of a mask as JSON, and reads them.

They are what `SamPredictor.predict` returns as `low_res_masks` and takes as `mask_input`: 256×256
logits over the network's input frame. As float16 they keep eleven bits of each logit, and take half
the bytes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pybase64
from numpy.typing import NDArray

from samserve.errors import InvalidField
from samserve.pictures.base64_text import decode_base64

SIDE = 256
DTYPE = np.dtype("<f2")

_LARGEST = float(np.finfo(DTYPE).max)


def rounded(logits: NDArray[np.float32]) -> NDArray[np.float16]:
    """Return the logits as float16. Those beyond its range become its largest numbers."""
    return logits.clip(-_LARGEST, _LARGEST).astype(DTYPE)


def to_json(logits: NDArray[np.float16]) -> dict[str, Any]:
    """Return the logits as an answer has them: their shape, their dtype, and base64 of them."""
    data = pybase64.b64encode(np.ascontiguousarray(logits, DTYPE).tobytes()).decode()
    return {"shape": list(logits.shape), "dtype": "float16", "data": data}


def from_base64(data: str, field: str) -> NDArray[np.float32]:
    """Return the 256×256 logits that are written in `data`.

    Args:
        field: the path of `data` in the request, for errors.

    Raises:
        InvalidField: it is not base64, has another number of bytes, or holds NaN or infinity.
    """
    content = decode_base64(data, field)
    expected = SIDE * SIDE * DTYPE.itemsize
    if len(content) != expected:
        raise InvalidField(
            f"{field}: {len(content)} bytes; {SIDE}x{SIDE} numbers of float16 have {expected}.",
            field,
        )
    logits = np.frombuffer(content, DTYPE).astype(np.float32).reshape(SIDE, SIDE)
    if not np.isfinite(logits).all():
        raise InvalidField(f"{field}: the logits hold NaN or infinity.", field)
    return logits
