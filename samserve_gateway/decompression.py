"""Decompresses the bodies of requests. The size limit applies to the decompressed bytes.

`Content-Encoding` may be `gzip` or `zstd`, but not both. As both formats define it, several gzip
members or zstd frames in a row are one body. A body that is cut off, or followed by other bytes, is
refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from samserve.errors import InvalidRequest, TooLarge, UnsupportedEncoding

READ = "gzip, zstd"
"""The accepted encodings, as the `Accept-Encoding` header of a refusal lists them."""

MAX_MEMBERS = 2**14
"""Most gzip members or zstd frames in a body. Many empty ones would take much time for few bytes.
bgzip writes one member for each 64 KiB."""

ZSTD_WINDOW = 2**23
"""Largest zstd window, which the decoder holds in memory. RFC 9659 sets this bound for HTTP."""

SLICE = {"gzip": 2**12, "zstd": 2**8}
"""Compressed bytes that are decompressed between two checks of the size limit. They become 8 MiB at
most: gzip's ratio is up to 1032, and four bytes of zstd may stand for 128 KiB."""


def encoding_of(header: str) -> str | None:
    """Return the encoding that a Content-Encoding header names; None if it names none.

    Raises:
        UnsupportedEncoding: it names another encoding, or several.
    """
    names = [name.strip().lower() for name in header.split(",")]
    names = ["gzip" if name == "x-gzip" else name for name in names if name not in ("", "identity")]
    if not names:
        return None
    if len(names) > 1 or names[0] not in SLICE:
        raise UnsupportedEncoding(
            f"Content-Encoding: {', '.join(names)[:200]} is not read here: send the body as it is, "
            "or with gzip or zstd, once."
        )
    return names[0]


def decoded(content: bytes, encoding: str, limit: int) -> bytes:
    """Return the decompressed body. Takes milliseconds per megabyte, so call it in a thread.

    Raises:
        TooLarge: the decompressed body has more bytes than `limit`. Few more are decompressed.
        InvalidRequest: the body is damaged or cut off.
    """
    parts: list[bytes] = []
    size = 0
    try:
        for part in _parts(content, encoding):
            size += len(part)
            if size > limit:
                raise TooLarge(f"Decompressed, the body is larger than {limit} bytes, the limit.")
            parts.append(part)
    except (zlib.error, zstandard.ZstdError) as exc:
        raise InvalidRequest(f"The body is not valid {encoding}: {exc}.") from exc
    return b"".join(parts)


def _parts(content: bytes, encoding: str) -> Iterator[bytes]:
    begin = _new_decoder(encoding)
    step = SLICE[encoding]
    decoder, members = begin(), 1
    for start in range(0, len(content), step):
        rest = content[start : start + step]
        while rest:
            if decoder.eof:
                decoder, members = begin(), members + 1
                if members > MAX_MEMBERS:
                    raise InvalidRequest(f"The body has more than {MAX_MEMBERS} {encoding} parts.")
            yield decoder.decompress(rest)
            rest = decoder.unused_data if decoder.eof else b""
    if not decoder.eof:
        raise InvalidRequest(f"The body is incomplete: its {encoding} has no end.")


def _new_decoder(encoding: str) -> Callable[[], Any]:
    if encoding == "gzip":
        return lambda: zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    return lambda: zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()
