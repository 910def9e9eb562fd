"""A request's body, JSON or a form, and what goes to TorchServe in its place.

What a form may hold, `samserve.forms` says; what stands for a picture, `samserve.references`.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import orjson
from pydantic_core import from_json
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from samserve.errors import InvalidRequest
from samserve.forms import to_json
from samserve.references import reference_to

WORTHWHILE_BYTES = 2**15
"""A smaller body is forwarded as it came: taking it apart would cost what it saves."""

MAX_PARTS = 64


@dataclass(frozen=True)
class Body:
    """What a client asks.

    Attributes:
        json: the request; where the image came as a file, with a reference to that.
        image: that file.
    """

    json: bytes
    image: bytes | None = None

    def whole(self) -> tuple[bytes, str]:
        """All of it, and its Content-Type."""
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
        """What stands for the picture once it was sent; None where the body has none."""
        if self.image is not None:
            return reference_to(self.image)
        text = self._fields.get("b64img")
        return reference_to(text) if isinstance(text, str) else None

    @property
    def worth_abridging(self) -> bool:
        """Whether anything is saved by sending the reference in the picture's place."""
        large = self.image is not None or len(self.json) >= WORTHWHILE_BYTES
        return large and self.reference is not None

    def abridged(self) -> bytes:
        """The JSON with the reference in the picture's place."""
        if self.image is not None:
            return self.json
        return orjson.dumps({**self._fields, "b64img": self.reference})

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """The JSON's, or nothing where it is no object, or holds what JSON has not."""
        try:
            fields = from_json(self.json, allow_inf_nan=False)  # nothing reads a megabyte as fast
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}


async def body_of(content: bytes, content_type: str) -> Body:
    """A request's body by its Content-Type: a form, or else JSON.

    Raises:
        InvalidRequest: a form that cannot be read.
        SamserveError: a part of it is wrong.
    """
    if not content_type.lower().startswith("multipart/form-data"):
        return Body(content)

    async def stream() -> AsyncGenerator[bytes, None]:
        yield content

    parser = MultiPartParser(
        Headers({"content-type": content_type}),
        stream(),
        max_files=MAX_PARTS,
        max_fields=MAX_PARTS,
        max_part_size=len(content),
    )
    parser.spool_max_size = len(content)  # it is in memory anyway
    try:
        form = await parser.parse()
    except MultiPartException as exc:
        raise InvalidRequest(f"The form cannot be read: {exc.message}") from exc
    try:
        parts: dict[str, bytes] = {}
        for name, value in form.multi_items():
            if name in parts:
                raise InvalidRequest(f"The form has two parts named {name!r}.")
            parts[name] = await value.read() if isinstance(value, UploadFile) else value.encode()
    finally:
        await form.close()
    return Body(*to_json(parts))
