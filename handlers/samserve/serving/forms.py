"""This module reads a request in multipart/form-data, where the image is a file without base64.

    curl -F type=vit_t -F image=@cells.png -F 'bbox=[10,20,200,180]' …

The parts have the names of the JSON fields. Numbers, lists and booleans are written as in JSON, and
texts without quotes. `image` (instead of `b64img`) and `mask` (instead of `b64mask`) are files. The
part `request` may hold any other fields as one JSON object.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pybase64
from pydantic_core import from_json

from samserve.errors import InvalidField, InvalidImage, InvalidRequest
from samserve.pictures.digests import reference_to
from samserve.serving.json_text import check_size, dumps, to_utf8

from .requests import AutomaskRequest, PromptRequest
from .strictness import unknown_field

FILES = ("image", "mask")
"""The parts that are files; all other parts are text."""

MASK_PART = "data:application/octet-stream;name=mask;base64,"
"""The beginning of a `b64mask` that a form had as its part `mask`. Errors then name that part."""

_FIELDS = {**PromptRequest.model_fields, **AutomaskRequest.model_fields}
_TEXTS = {"type", "b64img", "b64mask", "checkpoint_url", "output_type", "output_format"}

_BASE64 = {"b64img", "b64mask"}

MAX_TEXT_BYTES = 2**14
"""Most bytes of a text that is not base64."""


def to_json(
    parts: Mapping[str, bytes | bytearray], strict: bool = False
) -> tuple[bytes, bytes | None]:
    """Return the same request as a JSON body, and the image's file.

    The body names the image by its digest. Without an `image` part there is no file.

    Args:
        strict: whether parts that are not known are refused. The form may ask for that, too.

    Raises:
        InvalidRequest: the part `request` is not a JSON object.
        InvalidField: a part has a wrong value, or two parts set the same field.
        InvalidImage: a file is empty.
        TooLarge: a part in JSON has too many values.
    """
    for name in FILES:
        # Causes: an unset variable in a shell script, or a file that is still being written.
        if name in parts and not parts[name]:
            raise InvalidImage(f"{name}: the file is empty.", name)
    fields = _request_part(parts.get("request"))
    for name, value in parts.items():
        if name in _FIELDS:
            _put(fields, name, _value(name, value), name)
    if strict or fields.get("strict") is True:
        _check_known(parts)
    if "mask" in parts:
        mask = MASK_PART + pybase64.b64encode(parts["mask"]).decode()
        _put(fields, "b64mask", mask, "mask")
    image = None
    if "image" not in parts and "b64img" not in fields:
        raise InvalidField("Send the picture as the file part image, or as b64img.", "image")
    if "image" in parts:
        image = bytes(parts["image"])
        reference = reference_to(image)
        if fields.get("b64img") != reference:  # the gateway sends the digest and the file
            _put(fields, "b64img", reference, "image")
    return dumps(fields), image


def _check_known(parts: Iterable[str]) -> None:
    known = [*_FIELDS, *FILES, "request"]
    for name in parts:
        if name not in known:
            raise unknown_field(name, known)


def _request_part(value: bytes | bytearray | None) -> dict[str, Any]:
    if value is None:
        return {}
    text = bytes(to_utf8(value))
    check_size(text, "request")
    try:
        fields = from_json(text, allow_inf_nan=False)
    except ValueError as exc:
        raise InvalidRequest(f"The part `request` is not JSON: {exc}.") from exc
    if not isinstance(fields, dict):
        raise InvalidRequest("The part `request` must be a JSON object.")
    return fields


def _value(name: str, value: bytes | bytearray) -> Any:
    try:
        utf8 = to_utf8(value)
        _check_part(name, utf8)
        text = utf8.decode()
        if name in _TEXTS:
            return text
        # The requests library of Python, and R, write True and False.
        return from_json({"True": "true", "False": "false"}.get(text, text), allow_inf_nan=False)
    except UnicodeDecodeError as exc:
        raise InvalidField(f"{name} is not text in UTF-8: {exc.reason}.", name) from exc
    except ValueError as exc:
        raise InvalidField(
            f"{name} is not JSON: {exc}. Write a box as [10,20,200,180], a number as 0.5, and "
            "true or false in lower case.",
            name,
        ) from exc


def _check_part(name: str, utf8: bytes | bytearray) -> None:
    """Refuse a part that would cost much time or memory, and that no request needs."""
    if name in _BASE64:
        if not utf8.isascii():
            raise InvalidField(f"{name} is not base64: it has characters beyond ASCII.", name)
    elif name not in _TEXTS:
        check_size(utf8, name)
    elif len(utf8) > MAX_TEXT_BYTES:
        raise InvalidField(f"{name} has {len(utf8)} bytes; at most {MAX_TEXT_BYTES}.", name)


def _put(fields: dict[str, Any], name: str, value: Any, part: str) -> None:
    if name in fields:
        both = f"both {part} and {name}" if part != name else f"{name} twice"
        raise InvalidField(f"The form has {both}; send one.", name)
    fields[name] = value
