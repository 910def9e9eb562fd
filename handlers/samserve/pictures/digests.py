"""This module has the digests that stand for a picture that was sent before.

`"b64img": "sha256:<64 hex digits>"` stands for the base64 text with that SHA-256, or for the image
file with that SHA-256 if it was sent as a file. Base64 has no colon, so a digest cannot be
confused with a base64 text. If the worker still has the picture's embedding, it answers from it.
If not, it answers 409, and the picture itself must be sent.

The gateway sends digests to TorchServe, so that the megabyte that a client sends with every click
does not pass through TorchServe each time.
"""

from __future__ import annotations

import hashlib
import re

_SLICE = 2**20
"""Characters of a text that are encoded at once, so that it is not copied as a whole."""

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")


def digest_of_sent(sent: str | bytes) -> str:
    """Return the SHA-256, in hex, of a base64 text or an image file.

    If `sent` is itself a digest (`sha256:…`), return its 64 hex digits.
    """
    if isinstance(sent, str):
        match = _DIGEST.fullmatch(sent)
        if match:
            return match[1]
        digest = hashlib.sha256()
        for start in range(0, len(sent), _SLICE):
            # JSON admits lone surrogates. Decoding the base64 text will refuse them.
            digest.update(sent[start : start + _SLICE].encode(errors="surrogatepass"))
        return digest.hexdigest()
    return hashlib.sha256(sent).hexdigest()


def reference_to(sent: str | bytes) -> str:
    """Return the digest, `sha256:…`, that stands for this base64 text or image file."""
    return f"sha256:{digest_of_sent(sent)}"


def is_reference(text: str) -> bool:
    """Return whether a text is a digest, which stands for a picture that was sent before."""
    return _DIGEST.fullmatch(text) is not None
