"""Reads a picture that is sent ahead (`PUT /sam/images/`), and writes the request that embeds it.

The picture comes as it is, as JSON, or in a form. It goes to the worker as base64 without line
breaks, whatever it came as: so its digest is always the same one, that of this text.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import pybase64
from fastapi import Request

from samserve.errors import InvalidField, InvalidImage, TooLarge
from samserve.pictures.base64_text import decode_base64
from samserve.pictures.digests import is_reference
from samserve.serving.json_text import dumps
from samserve.serving.requests import EmbedRequest, RoutedRequest

from .bodies import Body, body_of, is_strict, parsed, read_content

_WITH_FIELDS = ("application/json", "multipart/form-data")
"""The media types whose bodies have fields. A body of another type is the picture itself, unless it
begins as a JSON object does: no picture begins so, and `curl -d` calls JSON a form."""

_ROOM_BYTES = 2**13
"""Bytes for the fields beside the picture."""


async def read_picture(
    request: Request, limit: int, chosen: Mapping[str, Any]
) -> tuple[Body, RoutedRequest]:
    """Return the request that embeds the picture, and what it chooses.

    Args:
        limit: the most bytes of a body, as it came and as it is sent on.
        chosen: the fields that the request's address has.

    Raises:
        InvalidImage: the body is empty.
        SamserveError: as `read_content` and `EmbedRequest.parse`.
    """
    content = await read_content(request, limit)
    content_type = request.headers.get("content-type", "")
    parse = partial(_parse, content, content_type, limit, chosen, is_strict(request))
    return await parsed(request, content, parse)


def _parse(
    content: bytes, content_type: str, limit: int, chosen: Mapping[str, Any], strict: bool
) -> tuple[Body, RoutedRequest]:
    picture: bytes | str = content
    fields = {name: value for name, value in chosen.items() if value is not None}
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type in _WITH_FIELDS or content[:99].lstrip().startswith(b"{"):
        sent = body_of(content, content_type, strict)
        sent.check_known(EmbedRequest, strict)
        request = EmbedRequest.parse(sent.json)
        picture = sent.image or request.b64img
        for name, value in request.model_dump(exclude_unset=True, exclude={"b64img"}).items():
            if name in fields:
                raise InvalidField(f"{name}: send it in the address or in the body.", name)
            fields[name] = value
    elif not content:
        raise InvalidImage("The body is empty: send the image file, or JSON with b64img.", "image")
    body = Body(dumps({"b64img": _as_text(picture, limit), **fields}))
    return body, body.choice()


def _as_text(picture: bytes | str, limit: int) -> str:
    """Return the picture's base64 text, or its digest if only that was sent."""
    if isinstance(picture, str):
        if is_reference(picture):
            return picture
        picture = decode_base64(picture)  # without line breaks and a data: prefix
    most = (limit - _ROOM_BYTES) * 3 // 4
    if len(picture) > most:
        raise TooLarge(f"The image has {len(picture)} bytes; this server's limit is {most}.")
    return pybase64.b64encode(picture).decode()
