"""Large answers compressed, where the client says that it understands that.

An automask of many ragged objects is megabytes of coordinates, which shrink to a tenth. A click's
answer is not worth it: it goes as it is.
"""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable

import zstandard

WORTHWHILE_BYTES = 2**16

# Best first; levels that keep up with a network.
_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {
    "zstd": lambda content: zstandard.compress(content, 3),
    "gzip": lambda content: gzip.compress(content, 4),
}


async def compressed(content: bytes, accept_encoding: str) -> tuple[bytes, str | None]:
    """The content, and the name of its encoding if it has one.

    Args:
        accept_encoding: the client's header (RFC 9110, 12.5.3).
    """
    name = chosen(accept_encoding)
    if name is None or len(content) < WORTHWHILE_BYTES:
        return content, None
    # In a thread: others' clicks must not wait for it.
    return await asyncio.to_thread(_ENCODINGS[name], content), name


def chosen(accept_encoding: str) -> str | None:
    """The encoding of ours that the client likes best, if any."""
    wanted = {}
    for part in accept_encoding.lower().split(","):
        name, _, parameter = part.partition(";")
        key, _, quality = parameter.partition("=")
        try:
            wanted[name.strip()] = float(quality) if key.strip() == "q" else 1.0
        except ValueError:
            wanted[name.strip()] = 0.0
    best = max(_ENCODINGS, key=lambda name: wanted.get(name, wanted.get("*", 0.0)))
    return best if wanted.get(best, wanted.get("*", 0.0)) > 0 else None
