"""Reads a request's body, JSON or a form, and writes what goes to TorchServe in its place.

`samserve.serving.forms` defines the fields of a form, `samserve.pictures.digests` the digest that
stands for a picture.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fastapi import Request
from pydantic import ValidationError
from pydantic_core import from_json

from samserve.errors import InvalidRequest, TooLarge, UnsupportedMediaType
from samserve.pictures.digests import reference_to
from samserve.serving.forms import to_json
from samserve.serving.json_text import dumps, to_utf8
from samserve.serving.requests import RoutedRequest

from . import decompression
from .multipart import charset_of, parts_of

DRAIN_FACTOR = 4
"""A body over the limit is read up to this many times the limit: a client reads the answer only
after it has sent its body. Beyond that, the connection is closed."""

WORTHWHILE_BYTES = 2**15
"""A smaller body is forwarded unchanged: replacing its picture would cost as much as it saves."""


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
        """
        if self._fields is not None:
            try:
                return RoutedRequest.model_validate(self._fields)
            except ValidationError:
                pass
        # Slower, but `parse` says what is wrong. It also accepts NaN, which `_fields` does not.
        return RoutedRequest.parse(self.json)

    def whole(self) -> tuple[bytes, str]:
        """Return the whole body, and its Content-Type."""
        if self.image is None:
            return self.json, "application/json"
        boundary = secrets.token_hex(16)
        parts = {"request": self.json, "image": self.image}
        written = [
            b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n'
            b"Content-Type: application/octet-stream\r\n\r\n%s\r\n"
            % (boundary.encode(), name.encode(), name.encode(), content)
            for name, content in parts.items()
        ]
        end = b"--%s--\r\n" % boundary.encode()
        return b"".join([*written, end]), f"multipart/form-data; boundary={boundary}"

    @cached_property
    def reference(self) -> str | None:
        """The digest that stands for the picture, as `sha256:…`; None without a picture."""
        if self.image is not None:
            return reference_to(self.image)
        text = (self._fields or {}).get("b64img")
        return reference_to(text) if isinstance(text, str) else None

    @property
    def worth_abridging(self) -> bool:
        """Whether sending the digest in the picture's place saves anything."""
        large = self.image is not None or len(self.json) >= WORTHWHILE_BYTES
        return large and self.reference is not None

    def abridged(self) -> bytes:
        """Return the JSON with the digest in the picture's place."""
        if self.image is not None:
            return self.json
        return dumps({**(self._fields or {}), "b64img": self.reference})

    @cached_property
    def _fields(self) -> dict[str, Any] | None:
        """The fields of the JSON; None if it is not an object, or contains NaN or Infinity."""
        try:
            fields = from_json(self.json, allow_inf_nan=False)  # the fastest for a megabyte
        except ValueError:
            return None
        return fields if isinstance(fields, dict) else None


async def read_content(request: Request, limit: int) -> bytes:
    """Return the request's body, decompressed. Memory never holds much more than `limit` bytes.

    Raises:
        TooLarge: the body has more bytes than `limit`, as sent or decompressed.
        UnsupportedEncoding: it is compressed, but neither with gzip nor with zstd.
        InvalidRequest: it cannot be decompressed.
        ClientDisconnect: the client has gone.
    """
    encoding = decompression.encoding_of(", ".join(request.headers.getlist("content-encoding")))
    chunks: list[bytes] = []
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received <= limit:
            chunks.append(chunk)
        elif received > DRAIN_FACTOR * limit:
            break
    if received > limit:
        raise TooLarge(f"The body is larger than this server's limit of {limit} bytes.")
    content = b"".join(chunks)
    if encoding is None:
        return content
    return await asyncio.to_thread(decompression.decoded, content, encoding, limit)


def body_of(content: bytes, content_type: str) -> Body:
    """Return a request's body. Its Content-Type says whether it is a form; else it is JSON.

    Raises:
        InvalidRequest: the form is damaged or incomplete, or the text is not in its charset.
        UnsupportedMediaType: the form or the charset is of a kind that is not read here.
        SamserveError: a part of the form is wrong.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return Body(*to_json(parts_of(content, content_type)))
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
