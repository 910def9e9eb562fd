"""A request's body, JSON or a form, and what goes to TorchServe in its place.

What a form may hold, `samserve.forms` says; what stands for a picture, `samserve.references`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic_core import from_json

from samserve.errors import InvalidRequest, UnsupportedMediaType
from samserve.pictures.digests import reference_to
from samserve.serving.forms import to_json
from samserve.serving.json_text import dumps, to_utf8

from .multipart import charset_of, parts_of

WORTHWHILE_BYTES = 2**15
"""A smaller body is forwarded as it came: taking it apart would cost what it saves."""


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
        return dumps({**self._fields, "b64img": self.reference})

    @cached_property
    def _fields(self) -> dict[str, Any]:
        """The JSON's, or nothing where it is no object, or holds what JSON has not."""
        try:
            fields = from_json(self.json, allow_inf_nan=False)  # nothing reads a megabyte as fast
        except ValueError:
            return {}
        return fields if isinstance(fields, dict) else {}


def body_of(content: bytes, content_type: str) -> Body:
    """A request's body by its Content-Type: a form, or else JSON.

    Raises:
        InvalidRequest: a form that cannot be read or is incomplete, or text that is not in its
            encoding.
        UnsupportedMediaType: a form or an encoding of another kind.
        SamserveError: a part of it is wrong.
    """
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type == "multipart/form-data":
        return Body(*to_json(parts_of(content, content_type)))
    if media_type.startswith("multipart/"):
        raise UnsupportedMediaType(f"{media_type[:99]} is not read here; multipart/form-data is.")
    text = bytes(to_utf8(content, charset_of(content_type)))
    # curl calls everything so that it is not told about, JSON among it.
    if media_type == "application/x-www-form-urlencoded" and not text.lstrip().startswith(b"{"):
        raise InvalidRequest(
            "The body is a form in application/x-www-form-urlencoded: send JSON, or the form as "
            "multipart/form-data (curl: -F in place of -d)."
        )
    return Body(text)
