"""This module decodes the base64 text in which a request carries an image file."""

from __future__ import annotations

import pybase64

from samserve.errors import InvalidField


def decode_base64(text: str, field: str = "b64img") -> bytes:
    """Return the bytes that a base64 text encodes.

    A `data:…;base64,` prefix is dropped. ASCII whitespace is ignored everywhere, because MIME
    breaks lines every 76 characters. Otherwise the decoder is strict, unlike Python's default: it
    takes the standard alphabet only, and requires correct padding.

    Args:
        text: the base64 text.
        field: the name of the text's field in the request, for errors.

    Raises:
        InvalidField: the text is empty, or is not base64.
    """
    text = text.lstrip(" \t\r\n\f\v")
    if text[:5].lower() == "data:":
        prefix, _, text = text.partition(",")
        if not prefix.lower().endswith(";base64"):
            raise InvalidField("the data: URL must have ';base64,' before its data", field)
    try:
        try:
            decoded = pybase64.b64decode(text, validate=True)
        except ValueError:
            # Removing whitespace costs more than decoding, and few texts have line breaks.
            decoded = pybase64.b64decode(b"".join(text.encode("ascii").split()), validate=True)
    except ValueError as exc:
        raise InvalidField(
            "not base64: it has characters other than A-Z a-z 0-9 + / =, or wrong padding",
            field,
        ) from exc
    if not decoded:
        raise InvalidField("the base64 text is empty", field)
    return decoded
