"""This module finds the encoding of JSON's bytes, and writes objects as JSON.

RFC 8259 requires UTF-8. But Windows programs write a byte order mark, or UTF-16, and a Java client
may declare Latin-1. Integers have any size in Python and 64 bits in orjson.

`serving.requests` checks the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import orjson

from samserve.errors import InvalidRequest, UnsupportedMediaType

_UNICODE = {"utf8", "usascii", "ascii"} | {
    f"utf{bits}{order}" for bits in (16, 32) for order in ("", "le", "be")
}
_SINGLE_BYTE = {
    "latin1": "latin-1",
    "iso88591": "latin-1",
    "windows1252": "cp1252",
    "cp1252": "cp1252",
}


def to_utf8(content: bytes | bytearray, charset: str | None = None) -> bytes | bytearray:
    """Return the text in UTF-8 without a byte order mark.

    Args:
        charset: the charset of the Content-Type header. It is ignored for UTF-8, UTF-16 and
            UTF-32: JSON begins with an ASCII character, so its first bytes show which it is.

    Raises:
        UnsupportedMediaType: the charset is not supported; the message names it.
        InvalidRequest: the bytes are not in their encoding.
    """
    named = (charset or "utf-8").strip().lower().replace("-", "").replace("_", "")
    if named not in _UNICODE and named not in _SINGLE_BYTE:
        raise UnsupportedMediaType(
            f"The charset {charset!r} is not read here: send UTF-8 (UTF-16, UTF-32, Latin-1 and "
            "windows-1252 are read, too)."
        )
    encoding: str = json.detect_encoding(bytes(content[:4]))
    if encoding == "utf-8":
        if named not in _SINGLE_BYTE:
            return content
        encoding = _SINGLE_BYTE[named]
    elif encoding == "utf-8-sig":
        return content[3:]
    try:
        return content.decode(encoding).encode()
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"The text is not {encoding.upper()}: {exc.reason}.") from exc


def dumps(fields: Mapping[str, Any]) -> bytes:
    """Return an object as JSON. Its integers may have any size."""
    try:
        return orjson.dumps(fields)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(fields).encode()
