"""A picture that the workers know goes to them as a reference, not again in full.

QuPath sends the whole view with every click. On its way through TorchServe and into the worker
a megabyte costs several milliseconds, only to be found known there: so the gateway takes the
digest, and sends that. What a reference is, `samserve.references` says.

Remembers digests only. A worker that no longer knows the picture says so, and gets it in full.
"""

from __future__ import annotations

from collections import OrderedDict

import orjson
from pydantic_core import from_json

from samserve.errors import UnknownImage
from samserve.references import reference_to

from .torchserve import Answer, TorchServe

WORTHWHILE_BYTES = 2**15
"""A smaller body is forwarded as it came: taking it apart would cost what it saves."""

MAX_KNOWN = 2**14
"""Many more than the workers keep; some megabytes of digests."""


class KnownPictures:
    """Remembers which pictures the workers have answered for, and spares them those."""

    def __init__(self, torchserve: TorchServe) -> None:
        self._torchserve = torchserve
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def predict(self, lane: str, model_type: str, body: bytes, timeout_s: float) -> Answer:
        """The lane's answer to a JSON body, whatever its status.

        Args:
            model_type: the lane's, whose workers share what they know.

        Raises:
            TorchServeError: as `TorchServe.predict`.
        """
        short = abridged(body)
        if short is None:
            return await self._torchserve.predict(lane, body, timeout_s)
        reference, short_body = short
        key = (model_type, reference)
        if key in self._known:
            self._known.move_to_end(key)
            answer = await self._torchserve.predict(lane, short_body, timeout_s)
            if answer.status != UnknownImage.status:
                return answer
        answer = await self._torchserve.predict(lane, body, timeout_s)
        if answer.status == 200:
            self._known[key] = None
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
        return answer


def abridged(body: bytes) -> tuple[str, bytes] | None:
    """The reference to a body's picture, and the body with that in the picture's place.

    None where there is nothing to save, or where the worker must see the body to refuse it.
    """
    if len(body) < WORTHWHILE_BYTES:
        return None
    try:
        request = from_json(body, allow_inf_nan=False)  # nothing reads a megabyte as fast
    except ValueError:
        return None
    text = request.get("b64img") if isinstance(request, dict) else None
    if not isinstance(text, str) or len(text) < WORTHWHILE_BYTES:
        return None
    reference = reference_to(text)
    return reference, orjson.dumps({**request, "b64img": reference})
