"""This module decompresses bodies. The size limit holds for the decompressed bytes.

`Content-Encoding: gzip` and `zstd`, either once. Several members or frames in a row are one body,
as both formats have it; a body that is cut off, or followed by anything else, is refused.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from typing import Any

import zstandard

from samserve.errors import InvalidRequest, TooLarge, UnsupportedEncoding

READ = "gzip, zstd"
"""What may be sent, as `Accept-Encoding` says it in the refusal of all else."""

MAX_MEMBERS = 2**14
"""A body of many empty members would cost time that its bytes don't show. bgzip writes one for
each 64 KiB."""

ZSTD_WINDOW = 2**23
"""RFC 9659's bound on HTTP's windows, which are memory."""

SLICE = {"gzip": 2**12, "zstd": 2**8}
"""Compressed bytes undone before the limit is looked at again. They become at most about 8 MiB:
gzip's ratio is up to 1032, and four bytes of zstd may stand for 128 KiB."""


def encoding_of(header: str) -> str | None:
    """Return the encoding that a Content-Encoding header names; None if it names none.

    Raises:
        UnsupportedEncoding: it is another one, or there are several.
    """
    named = [name.strip().lower() for name in header.split(",")]
    named = ["gzip" if name == "x-gzip" else name for name in named if name not in ("", "identity")]
    if not named:
        return None
    if len(named) > 1 or named[0] not in SLICE:
        raise UnsupportedEncoding(
            f"Content-Encoding: {', '.join(named)[:200]} is not read here: send the body as it is, "
            "or with gzip or zstd, once."
        )
    return named[0]


def decoded(content: bytes, encoding: str, limit: int) -> bytes:
    """Return the decompressed body. It takes milliseconds a megabyte, so call it in a thread.

    Raises:
        TooLarge: it has more bytes than `limit`; not many more were ever made of it.
        InvalidRequest: it is damaged, or cut off.
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
