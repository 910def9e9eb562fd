"""Compresses large answers for clients that accept it.

An automask of many ragged objects is megabytes of coordinates, which shrink to a tenth. A prompt's
answer is too small to be worth compressing.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable

import zstandard

WORTHWHILE_BYTES = 2**16
"""A smaller answer is not compressed."""

# The best encoding first. The levels compress about as fast as a network sends.
_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda content: zstandard.compress(content, 3),
    "gzip": lambda content: gzip.compress(content, 4),
}


async def compressed(content: bytes, accept_encoding: str) -> tuple[bytes, str | None]:
    """Return the content, compressed if it is large, and the name of its encoding or None.

    Args:
        accept_encoding: the client's header (RFC 9110, 12.5.3).
    """
    name = chosen(accept_encoding)
    if name is None or len(content) < WORTHWHILE_BYTES:
        return content, None
    # In a thread: the event loop serves other requests meanwhile.
    return await asyncio.to_thread(_ENCODINGS[name], content), name


def chosen(accept_encoding: str) -> str | None:
    """Return the encoding that the client prefers among ours; None if it accepts none of them."""
    qualities = {}
    for part in accept_encoding.lower().split(","):
        name, _, parameter = part.partition(";")
        key, _, quality = parameter.partition("=")
        try:
            qualities[name.strip()] = float(quality) if key.strip() == "q" else 1.0
        except ValueError:
            qualities[name.strip()] = 0.0
    best = max(_ENCODINGS, key=lambda name: qualities.get(name, qualities.get("*", 0.0)))
    return best if qualities.get(best, qualities.get("*", 0.0)) > 0 else None
