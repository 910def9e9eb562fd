"""Reads a request's body, JSON or a form, and writes what goes to TorchServe in its place.

`samserve.serving.forms` defines the fields of a form, `samserve.pictures.digests` the digest that
stands for a picture.
"""

from __future__ import annotations

import asyncio
import io
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from samserve.errors import Busy, InvalidRequest, SlowBody, TooLarge, UnsupportedMediaType
from samserve.pictures.digests import reference_to
from samserve.serving.forms import to_json
from samserve.serving.headers import PREFER
from samserve.serving.json_text import check_size, dumps, to_utf8
from samserve.serving.requests import RoutedRequest
from samserve.serving.strictness import check_known, prefers_strict

from . import decompression
from .body_budget import share_of
from .multipart import charset_of, parts_of
from .pace import SLOW

DRAIN_FACTOR = 4
"""A body over the limit is read up to this many times the limit: a client reads the answer only
after it has sent its body. Beyond that, the connection is closed."""

WORTHWHILE_BYTES = 2**15
"""A smaller body is forwarded unchanged: replacing its picture would cost as much as it saves."""

MAX_ABRIDGED_BYTES = 2**22
"""A body with more bytes beside its picture is forwarded unchanged: it would be written again on
the event loop."""

INLINE_BYTES = 2**16
"""A smaller body is parsed on the event loop. That takes less time than passing it to a thread."""

LARGE_BYTES = 2**23
"""Bodies larger than this are parsed one at a time. Parsing copies the picture's text."""


@dataclass(frozen=True)
class Body:
    """The body of a segmentation request.

    Attributes:
        json: the request. If the image came as a file, `b64img` is the file's digest.
        image: the image file of a form; None if there is none.
    """

    json: bytes
    image: bytes | None = None

    def choice(self) -> RoutedRequest:
        """Return the model type and the weights that the body chooses.

        Raises:
            InvalidRequest: the body is not a JSON object.
            InvalidField: `type` or `checkpoint_url` is wrong.
            TooLarge: the JSON has too many parts.
        """
        if self._fields is not None:
            try:
                return RoutedRequest.model_validate(self._fields)
            except ValidationError:
                pass
        # Slower, but `parse` says what is wrong. It also accepts NaN, which `_fields` does not.
        return RoutedRequest.parse(self.json)

    def check_known(self, model: type[RoutedRequest], strict: bool) -> None:
        """Check that the body has no field that is not known, if it or `strict` asks for that.

        A body that is not JSON passes: see `choice`.

        Raises:
            InvalidField: it names the first such field.
        """
        if self._fields is not None and (strict or self._fields.get("strict") is True):
            check_known(self._fields, model)

    def whole(self) -> tuple[bytes, str]:
        """Return the whole body, and its Content-Type."""
        if self.image is None:
            return self.json, "application/json"
        boundary = secrets.token_hex(16)
        parts = {"request": self.json, "image": self.image}
        written: list[bytes] = []
        for name, content in parts.items():
            head = (
                f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{name}"'
                "\r\nContent-Type: application/octet-stream\r\n\r\n"
            )
            written += [head.encode(), content, b"\r\n"]
        written.append(f"--{boundary}--\r\n".encode())
        return b"".join(written), f"multipart/form-data; boundary={boundary}"

    @property
    def reference(self) -> str | None:
        """The digest that stands for the picture, as `sha256:…`; None without a picture."""
        return self._parsed[1]

    @property
    def worth_abridging(self) -> bool:
        """Whether sending the digest in the picture's place saves anything."""
        if self.image is not None:
            return True
        _, reference, picture_size = self._parsed
        rest = len(self.json) - picture_size
        large = len(self.json) >= WORTHWHILE_BYTES and rest <= MAX_ABRIDGED_BYTES
        return large and reference is not None

    def abridged(self) -> bytes:
        """Return the JSON with the digest in the picture's place."""
        if self.image is not None:
            return self.json
        return dumps({**(self._fields or {}), "b64img": self.reference})

    @property
    def _fields(self) -> dict[str, Any] | None:
        """The fields of the JSON without its picture. None if it is not an object, or contains NaN
        or Infinity."""
        return self._parsed[0]

    @cached_property
    def _parsed(self) -> tuple[dict[str, Any] | None, str | None, int]:
        """`_fields`, `reference`, and the length of the picture's text.

        The text itself is not kept: the JSON has it already.
        """
        reference = None if self.image is None else reference_to(self.image)
        check_size(self.json)
        try:
            fields = from_json(self.json, allow_inf_nan=False)  # the fastest for a megabyte
        except ValueError:
            return None, reference, 0
        if not isinstance(fields, dict):
            return None, reference, 0
        size = 0
        if self.image is None and isinstance(text := fields.pop("b64img", None), str):
            reference, size = reference_to(text), len(text)
        return fields, reference, size


async def read_body(
    request: Request, limit: int, model: type[RoutedRequest]
) -> tuple[Body, RoutedRequest]:
    """Return a segmentation request's body and what it chooses. The event loop goes on meanwhile.

    Args:
        model: has all fields that the body may have, for the strict mode.

    Raises: as `read_content`, `body_of` and `Body.choice`.
    """
    content = await read_content(request, limit)
    content_type = request.headers.get("content-type", "")
    parse = partial(_parse, content, content_type, model, is_strict(request))
    return await parsed(request, content, parse)


async def parsed(
    request: Request, content: bytes, parse: Callable[[], tuple[Body, RoutedRequest]]
) -> tuple[Body, RoutedRequest]:
    """Return what `parse` makes of the request's content. The event loop goes on meanwhile.

    Raises:
        Busy: what it makes is larger, and the bodies of all requests together are too large.
    """
    share = share_of(request.scope)
    if len(content) < INLINE_BYTES:
        return parse()
    if len(content) < LARGE_BYTES:
        return await asyncio.to_thread(parse)
    async with share.parsing:
        body, choice = await asyncio.to_thread(parse)
    grown = len(body.json) + len(body.image or b"") - len(content)  # another charset, or a mask
    refusal = share.take(max(grown, 0))
    if refusal is not None:
        raise refusal
    return body, choice


def _parse(
    content: bytes, content_type: str, model: type[RoutedRequest], strict: bool
) -> tuple[Body, RoutedRequest]:
    body = body_of(content, content_type, strict)
    body.check_known(model, strict)
    return body, body.choice()


async def read_content(request: Request, limit: int) -> bytes:
    """Return the request's body, decompressed. Memory never holds much more than `limit` bytes.

    Raises:
        TooLarge: the body has more bytes than `limit`, as sent or decompressed.
        Busy: the bodies of all requests together are too large.
        SlowBody: the body arrives too slowly.
        UnsupportedEncoding: it is compressed, but neither with gzip nor with zstd.
        InvalidRequest: it cannot be decompressed.
        ClientDisconnect: the client has gone.
    """
    encoding = decompression.encoding_of(", ".join(request.headers.getlist("content-encoding")))
    share = share_of(request.scope)
    # Its value is not copied, unlike that of a list of chunks.
    content = io.BytesIO()
    received = 0
    refusal: TooLarge | Busy | None = None
    async for chunk in _chunks(request):
        received += len(chunk)
        if received > limit:
            refusal = TooLarge(
                f"The body is larger than this server's limit of {limit} bytes "
                f"({limit / 2**20:.4g} MiB)."
            )
        elif refusal is None:
            refusal = share.take(len(chunk))
        if refusal is None:
            content.write(chunk)
        else:  # the client reads the answer only after it has sent its body
            content = io.BytesIO()
            share.give_back()
            if received > DRAIN_FACTOR * limit:
                break
    if refusal is not None:
        raise refusal
    if encoding is None:
        return content.getvalue()
    async with share.decompressing:
        decoded = await asyncio.to_thread(
            decompression.decoded, content.getvalue(), encoding, limit
        )
    share.give_back()
    refusal = share.take(len(decoded))
    if refusal is not None:
        raise refusal
    return decoded


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """Yield the body's parts as they come.

    Raises:
        SlowBody: the connection says that the body arrives too slowly (`protocol.py`).
        ClientDisconnect: the client has gone.
    """
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        if message.get("body"):
            yield message["body"]
        if not message.get("more_body", False):
            return
        if SLOW in request.scope.get("state", {}):
            raise SlowBody(request.scope["state"][SLOW])


def is_strict(request: Request) -> bool:
    """Return whether the request's headers ask that fields that are not known are refused."""
    return prefers_strict(", ".join(request.headers.getlist(PREFER)))


def body_of(content: bytes, content_type: str, strict: bool = False) -> Body:
    """Return a request's body. Its Content-Type says whether it is a form; else it is JSON.

    Args:
        strict: whether parts of a form that are not known are refused.

    Raises:
        InvalidRequest: the form is damaged or incomplete, or the text is not in its charset.
        UnsupportedMediaType: the form or the charset is of a kind that is not read here.
        SamserveError: a part of the form is wrong.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return Body(*to_json(parts_of(content, content_type), strict))
    if media_type.startswith("multipart/"):
        raise UnsupportedMediaType(f"{media_type[:99]} is not read here; multipart/form-data is.")
    text = bytes(to_utf8(content, charset_of(content_type)))
    # `curl -d` sends this Content-Type with JSON, too, unless it is told another.
    if media_type == "application/x-www-form-urlencoded" and not text.lstrip().startswith(b"{"):
        raise InvalidRequest(
            "The body is a form in application/x-www-form-urlencoded: send JSON, or the form as "
            "multipart/form-data (curl: -F in place of -d)."
        )
    return Body(text)
