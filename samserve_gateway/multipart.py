"""Splits a multipart/form-data body into its parts, as bytes.

An incomplete form is refused, because fields missing at its end would look as if they had not been
sent. `samserve.serving.forms` defines the meaning of the parts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from samserve.errors import InvalidRequest, UnsupportedMediaType
from samserve.serving.forms import FILES
from samserve.serving.json_text import to_utf8

MAX_PARTS = 64

_AS_IT_IS = ("7bit", "8bit", "binary")


@dataclass
class _Part:
    headers: dict[str, str] = field(default_factory=dict)
    content: list[bytes] = field(default_factory=list)

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
        content = b"".join(self.content)
        if name in FILES:
            return content
        try:
            return bytes(to_utf8(content, charset_of(self.headers.get("content-type", ""))))
        except (InvalidRequest, UnsupportedMediaType) as exc:
            raise type(exc)(f"{name}: {exc.message}", name) from exc


def charset_of(content_type: str) -> str | None:
    """Return the charset that a Content-Type names; None if it names none."""
    charset = parse_options_header(content_type)[1].get(b"charset")
    return None if charset is None else charset.decode("latin-1")


def parts_of(content: bytes, content_type: str) -> dict[str, bytes]:
    """Return the content of each part by the part's name.

    Raises:
        InvalidRequest: the content is not a form, is incomplete, has two parts of the same name, or
            has more than MAX_PARTS parts.
        UnsupportedMediaType: a part is in an encoding that is not read here.
    """
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise InvalidRequest("The form's Content-Type names no boundary.")
    values: dict[str, bytes] = {}
    for part in _Reader(boundary).read(content):
        name = part.name()
        if name in values:
            raise InvalidRequest(f"The form has two parts named {name!r}.")
        values[name] = part.value(name)
    return values


class _Reader:
    """Collects the parts that python_multipart's parser reports."""

    def __init__(self, boundary: bytes) -> None:
        self._boundary = boundary
        self._parts: list[_Part] = []
        self._header, self._header_value = b"", b""
        self._ended = False

    def read(self, content: bytes) -> list[_Part]:
        try:
            parser = MultipartParser(
                self._boundary,
                {
                    "on_part_begin": self._part_begins,
                    "on_part_data": self._data,
                    "on_header_field": self._name_of_header,
                    "on_header_value": self._value_of_header,
                    "on_header_end": self._header_ends,
                    "on_end": self._ends,
                },
            )
            parser.write(self._without_preamble(content))
        except FormParserError as exc:
            raise InvalidRequest(f"The form cannot be read: {exc}.") from exc
        if not self._ended:
            raise InvalidRequest("The form is incomplete: its last boundary is missing.")
        if not self._parts:
            raise InvalidRequest("The form has no parts.")
        return self._parts

    def _without_preamble(self, content: bytes) -> bytes:
        """Return the form from its first boundary on. RFC 2046 allows a text before it."""
        delimiter = b"--" + self._boundary
        if content.startswith(delimiter):
            return content
        start = content.find(b"\r\n" + delimiter)
        if start < 0:
            raise InvalidRequest(
                "The form is incomplete: the boundary that its Content-Type names is not in it."
            )
        return content[start + 2 :]

    def _part_begins(self) -> None:
        if len(self._parts) == MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        self._parts.append(_Part())

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._parts[-1].content.append(data[start:end])

    def _name_of_header(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _value_of_header(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_ends(self) -> None:
        name = self._header.decode("latin-1").lower()
        self._parts[-1].headers[name] = self._header_value.decode("latin-1")
        self._header, self._header_value = b"", b""

    def _ends(self) -> None:
        self._ended = True
