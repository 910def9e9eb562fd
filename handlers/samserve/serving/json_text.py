"""This module finds the encoding of JSON's bytes, bounds its parts, and writes objects as JSON.

RFC 8259 requires UTF-8. But Windows programs write a byte order mark, or UTF-16, and a Java client
may declare Latin-1. Integers have any size in Python and 64 bits in orjson.

`serving.requests` checks the fields.
"""

from __future__ import annotations

import codecs
import io
import json
from collections.abc import Mapping
from typing import Any

import orjson

from samserve.errors import InvalidRequest, TooLarge, UnsupportedMediaType

MAX_QUOTES = 2**18
"""Most quotes in a JSON text. Each string has two, and so has the name of a field."""

MAX_LISTS = 2**17
"""Most lists and objects in a JSON text."""

MAX_VALUES = 2**18
"""Most commas outside of strings, each of which separates two values. A mask of 256x256 numbers
has a quarter of them."""

MAX_BYTES_OUTSIDE = 2**23
"""Most bytes outside of strings. Numbers of thousands of digits would take seconds."""

UNCHECKED_BYTES = 2**16
"""A shorter text is parsed at once in any case, so its parts are not counted."""

_SLICE = 2**20
"""Bytes that are recoded at once. A thread that recodes keeps the others waiting for a slice."""

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
    # Its value is not copied, unlike that of a list of slices.
    text = io.BytesIO()
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for start in range(0, len(content), _SLICE):
            text.write(decoder.decode(bytes(content[start : start + _SLICE])).encode())
        text.write(decoder.decode(b"", final=True).encode())
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"The text is not {encoding.upper()}: {exc.reason}.") from exc
    return text.getvalue()


def check_size(text: bytes | bytearray, field: str | None = None) -> None:
    """Check that a JSON text has few enough parts to be parsed in a few hundredths of a second.

    A parser keeps every other thread of the process waiting, so the parts are counted before. The
    search goes from quote to quote, and does not look at what a string contains: a picture of
    60 MB costs a few milliseconds. A text that is not JSON may pass.

    Args:
        field: the part of a form that the text is, for the error.

    Raises:
        TooLarge: there are too many parts; the message names the number and the limit.
    """
    if len(text) <= UNCHECKED_BYTES:
        return
    quotes = lists = values = outside = start = 0
    within = False
    while start < len(text):
        quote = text.find(b'"', start)
        stop = len(text) if quote < 0 else quote
        if not within:
            outside += stop - start
            _check("bytes outside of strings", outside, MAX_BYTES_OUTSIDE, field)
            lists += text.count(b"[", start, stop) + text.count(b"{", start, stop)
            _check("lists and objects", lists, MAX_LISTS, field)
            values += text.count(b",", start, stop)
            _check("values", values, MAX_VALUES, field)
            within = True
        elif not _is_escaped(text, start, stop):
            within = False
        quotes += 1
        _check("quotes", quotes, MAX_QUOTES, field)
        start = stop + 1


def _is_escaped(text: bytes | bytearray, start: int, end: int) -> bool:
    """Return whether an odd number of backslashes ends this part of a string."""
    if text[end - 1 : end] != b"\\":
        return False
    part = text[start:end]
    return (len(part) - len(part.rstrip(b"\\"))) % 2 == 1


def _check(what: str, number: int, limit: int, field: str | None) -> None:
    if number > limit:
        where = "body" if field is None else f"part {field}"
        raise TooLarge(f"The {where} has at least {number} {what}; the limit is {limit}.", field)


def dumps(fields: Mapping[str, Any]) -> bytes:
    """Return an object as JSON. Its integers may have any size."""
    try:
        return orjson.dumps(fields)
    except TypeError:  # an integer of more than 64 bits
        return json.dumps(fields).encode()
