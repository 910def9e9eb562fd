"""A picture sent before, named by a digest in its place.

`"b64img": "sha256:<64 hex digits>"` stands for the base64 text of that SHA-256, or for the image
file of that SHA-256 where it came as a file. A colon is no base64, so nothing can be taken for
the other. The worker answers from the embedding that it keeps of that picture, or with 409, and
then wants the picture itself.

The gateway uses it, so that a megabyte that a client sends with every click does not go
through TorchServe each time.
"""

from __future__ import annotations

import hashlib
import re

_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")


def digest_of_sent(sent: str | bytes) -> str:
    """SHA-256 in hex of a base64 text or an image file; of what a reference stands for."""
    if isinstance(sent, str):
        referred = _REFERENCE.fullmatch(sent)
        if referred:
            return referred[1]
        # Surrogates that JSON let in are no base64, which decoding will say.
        sent = sent.encode(errors="surrogatepass")
    return hashlib.sha256(sent).hexdigest()


def reference_to(sent: str | bytes) -> str:
    """What stands for this base64 text or image file once it was sent."""
    return f"sha256:{digest_of_sent(sent)}"


def is_reference(text: str) -> bool:
    """Whether this stands for a picture that was sent before."""
    return _REFERENCE.fullmatch(text) is not None
