"""Splits a multipart/form-data body into its parts, as bytes.

An incomplete form is refused, because fields missing at its end would look as if they had not been
sent. `samserve.serving.forms` defines the meaning of the parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from python_multipart.multipart import parse_options_header

from samserve.errors import InvalidRequest, UnsupportedMediaType
from samserve.serving.forms import FILES
from samserve.serving.json_text import to_utf8

MAX_PARTS = 64

MAX_PART_HEADERS = 8
"""Most headers of a part. Browsers send two."""

MAX_PART_HEAD_BYTES = 2**12
"""Most bytes of a part's headers together."""

MAX_BOUNDARY_BYTES = 256
"""Most bytes of a boundary. RFC 2046 allows 70."""

MAX_CONTENT_TYPE_BYTES = 2**12
"""Bytes of a Content-Type header that are read. Splitting it into its parameters takes time."""

_SEARCHED = 2**20
"""Bytes that are searched at once. A thread that searches keeps the others waiting for so many."""

_AS_IT_IS = ("7bit", "8bit", "binary")


@dataclass(frozen=True)
class _Part:
    headers: dict[str, str]
    content: bytes

    def name(self) -> str:
        """Return the part's name, or raise InvalidRequest if it has none."""
        _, options = parse_options_header(self.headers.get("content-disposition"))
        if b"name" not in options:
            raise InvalidRequest(
                'Each part of the form needs a header Content-Disposition: form-data; name="…".'
            )
        return options[b"name"].decode(errors="replace")

    def value(self, name: str) -> bytes:
        """Return the part's content; a text as UTF-8.

        Raises:
            UnsupportedMediaType: the content is in an encoding that is not read here.
            InvalidRequest: a text is not in its charset.
        """
        transfer = self.headers.get("content-transfer-encoding", "binary").strip().lower()
        if transfer not in _AS_IT_IS:
            raise UnsupportedMediaType(
                f"{name}: Content-Transfer-Encoding {transfer[:99]!r} is not read here: send "
                "the bytes unencoded, as HTTP allows.",
                name,
            )
        if name in FILES:
            return self.content
        try:
            return bytes(to_utf8(self.content, charset_of(self.headers.get("content-type", ""))))
        except (InvalidRequest, UnsupportedMediaType) as exc:
            raise type(exc)(f"{name}: {exc.message}", name) from exc


def charset_of(content_type: str) -> str | None:
    """Return the charset that a Content-Type names; None if it names none."""
    charset = _parameters(content_type).get(b"charset")
    return None if charset is None else charset.decode("latin-1")


def parts_of(content: bytes, content_type: str) -> dict[str, bytes]:
    """Return the content of each part by the part's name.

    Raises:
        InvalidRequest: the content is not a form, is incomplete, has two parts of the same name, or
            has too many parts or headers.
        UnsupportedMediaType: a part is in an encoding that is not read here.
    """
    boundary = _parameters(content_type).get(b"boundary")
    if not boundary:
        raise InvalidRequest("The form's Content-Type names no boundary.")
    if len(boundary) > MAX_BOUNDARY_BYTES:
        raise InvalidRequest(
            f"The form cannot be read: its boundary has {len(boundary)} bytes; at most "
            f"{MAX_BOUNDARY_BYTES}."
        )
    values: dict[str, bytes] = {}
    for part in _split(content, b"--" + boundary):
        name = part.name()
        if name in values:
            raise InvalidRequest(f"The form has two parts named {name[:99]!r}.")
        values[name] = part.value(name)
    if not values:
        raise InvalidRequest("The form has no parts.")
    return values


def _parameters(content_type: str) -> dict[bytes, bytes]:
    """Return the parameters of a Content-Type, as far as its first MAX_CONTENT_TYPE_BYTES go."""
    return parse_options_header(content_type[:MAX_CONTENT_TYPE_BYTES])[1]


def _split(content: bytes, dashed: bytes) -> Iterator[_Part]:
    """Yield the parts of a form (RFC 2046, 5.1.1), without text before the first or after the last.

    Args:
        dashed: the boundary with its two leading dashes.
    """
    if content.startswith(dashed):
        place = len(dashed)
    else:
        place = _find(content, b"\r\n" + dashed, 0)
        if place < 0:
            raise InvalidRequest(
                "The form is incomplete: the boundary that its Content-Type names is not in it."
            )
        place += 2 + len(dashed)
    number = 0
    while content[place : place + 2] != b"--":
        number += 1
        if number > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        start = _end_of_line(content, place)
        headers, start = _headers(content, start)
        # The line break before the boundary may also be the one that ends the headers.
        end = _find(content, b"\r\n" + dashed, start - 2)
        if end < 0:
            raise _incomplete()
        yield _Part(headers, content[start:end])
        place = end + 2 + len(dashed)


def _end_of_line(content: bytes, start: int) -> int:
    """Return the place after the line that a boundary begins. Spaces may follow the boundary."""
    end = content.find(b"\r\n", start, start + MAX_PART_HEAD_BYTES)
    if content[start : max(end, start)].strip(b" \t"):
        raise InvalidRequest("The form cannot be read: text follows a boundary on its line.")
    if end < 0:
        if len(content) - start < MAX_PART_HEAD_BYTES:
            raise _incomplete()
        raise InvalidRequest("The form cannot be read: text follows a boundary on its line.")
    return end + 2


def _headers(content: bytes, start: int) -> tuple[dict[str, str], int]:
    """Return a part's headers, with names in lower case, and the place after them."""
    headers: dict[str, str] = {}
    first = start
    for _ in range(MAX_PART_HEADERS + 1):
        end = content.find(b"\r\n", start, first + MAX_PART_HEAD_BYTES)
        if end < 0:
            if len(content) - first < MAX_PART_HEAD_BYTES:
                raise _incomplete()
            raise InvalidRequest(
                "The form cannot be read: the headers of a part have more than "
                f"{MAX_PART_HEAD_BYTES} bytes."
            )
        if end == start:
            return headers, end + 2
        name, colon, value = content[start:end].decode("latin-1").partition(":")
        if not colon or not name.strip():
            raise InvalidRequest(f"The form cannot be read: {name[:99]!r} is no header of a part.")
        headers[name.strip().lower()] = value.strip()
        start = end + 2
    raise InvalidRequest(
        f"The form cannot be read: a part has more than {MAX_PART_HEADERS} headers."
    )


def _find(content: bytes, searched: bytes, start: int) -> int:
    """Return where the searched bytes are, from `start` on; -1 if they are not there."""
    for place in range(start, len(content), _SEARCHED):
        found = content.find(searched, place, place + _SEARCHED + len(searched) - 1)
        if found >= 0:
            return found
    return -1


def _incomplete() -> InvalidRequest:
    return InvalidRequest("The form is incomplete: its last boundary is missing.")
