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
from typing import Any, NamedTuple

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from samserve.errors import Busy, InvalidRequest, SlowBody, TooLarge, UnsupportedMediaType
from samserve.pictures.digests import is_reference, reference_to
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

MAX_ABRIDGED_BYTES = 2**22
"""A body with more bytes beside its picture is forwarded unchanged: it would be written again on
the event loop."""

INLINE_BYTES = 2**16
"""A smaller body is parsed on the event loop. That takes less time than passing it to a thread."""

LARGE_BYTES = 2**23
"""Bodies larger than this are parsed one at a time. Parsing copies the picture's text."""


class _Parsed(NamedTuple):
    """What the gateway reads of a body's JSON. The picture's text is not kept: the JSON has it.

    Attributes:
        fields: the fields without the picture. None if the JSON is not an object, or contains NaN
            or Infinity.
        reference: the digest that stands for the picture; None without a picture.
        picture_size: the length of the picture's text.
        has_digest: whether the client sent the picture's digest in its place.
    """

    fields: dict[str, Any] | None
    reference: str | None
    picture_size: int = 0
    has_digest: bool = False


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
        fields = self._parsed.fields
        if fields is not None:
            try:
                return RoutedRequest.model_validate(fields)
            except ValidationError:
                pass
        # Slower, but `parse` says what is wrong. It also accepts NaN, which `_parsed` does not.
        return RoutedRequest.parse(self.json)

    def check_known(self, model: type[RoutedRequest], strict: bool) -> None:
        """Check that the body has no field that is not known, if it or `strict` asks for that.

        A body that is not JSON passes: see `choice`.

        Raises:
            InvalidField: it names the first such field.
        """
        fields = self._parsed.fields
        if fields is not None and (strict or fields.get("strict") is True):
            check_known(fields, model)

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
        return self._parsed.reference

    @property
    def can_be_abridged(self) -> bool:
        """Whether the picture's digest can be sent in the picture's place."""
        if self.image is not None:
            return True
        parsed = self._parsed
        rest = len(self.json) - parsed.picture_size
        has_picture = parsed.reference is not None and not parsed.has_digest
        return has_picture and rest <= MAX_ABRIDGED_BYTES

    def abridged(self) -> bytes:
        """Return the JSON with the digest in the picture's place."""
        if self.image is not None:
            return self.json
        return dumps({**(self._parsed.fields or {}), "b64img": self.reference})

    def has_picture(self, content: bytes) -> bool:
        """Return whether some content made of this body has the picture, not only its digest.

        Args:
            content: that of `whole` or of `abridged`.
        """
        if self.image is not None:
            return content is not self.json
        return content is self.json and not self._parsed.has_digest

    @cached_property
    def _parsed(self) -> _Parsed:
        reference = None if self.image is None else reference_to(self.image)
        check_size(self.json)
        try:
            fields = from_json(self.json, allow_inf_nan=False)  # the fastest for a megabyte
        except ValueError:
            return _Parsed(None, reference)
        if not isinstance(fields, dict):
            return _Parsed(None, reference)
        if self.image is None and isinstance(text := fields.pop("b64img", None), str):
            return _Parsed(fields, reference_to(text), len(text), is_reference(text))
        return _Parsed(fields, reference)


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
