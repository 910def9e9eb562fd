"""A picture sent before, named by a digest in place of its base64 text.

`"b64img": "sha256:<64 hex digits>"` stands for the base64 text of that SHA-256. A colon is no
base64, so neither can be taken for the other. The worker answers from the embedding that it
keeps of that picture, or with 409, and then wants the text.

The gateway uses it, so that a megabyte that a client sends with every click does not go
through TorchServe each time.
"""

from __future__ import annotations

import hashlib
import re

_REFERENCE = re.compile(r"sha256:([0-9a-f]{64})")


def digest_of_text(text: str) -> str:
    """SHA-256 of a base64 text, in hex; of the text that a reference stands for."""
    referred = _REFERENCE.fullmatch(text)
    if referred:
        return referred[1]
    # Surrogates that JSON let in are no base64, which decoding will say.
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def reference_to(text: str) -> str:
    """What stands for this base64 text once it was sent."""
    return f"sha256:{digest_of_text(text)}"


def is_reference(text: str) -> bool:
    """Whether this stands for a picture that was sent before."""
    return _REFERENCE.fullmatch(text) is not None
