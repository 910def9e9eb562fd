"""This module reads a TIFF's chain of directories and their tags, within bounds.

It reads TIFF and BigTIFF in both byte orders. A tag is read only when a caller needs it, and
checked against the file's length; all other tags are skipped, however large they are.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Literal

import numpy as np

MAX_PAGES = 100_000
"""The largest number of directories that is followed. A chain takes its sender 18 bytes a link."""

MAX_TAGS = 4096
"""The largest number of tags in a directory."""

# TIFF's types that hold integers, by number.
_INTEGERS = {1: "u1", 3: "u2", 4: "u4", 6: "i1", 8: "i2", 9: "i4", 13: "u4", 16: "u8", 17: "i8"}
_INTEGERS[18] = "u8"
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
_BYTES |= {16: 8, 17: 8, 18: 8}
_TEXTS = (1, 2, 7)
_DOUBLE = 12


ByteOrder = Literal["<", ">"]


class Unreadable(Exception):
    """The picture is not read. The message tells the sender why."""


@dataclass(frozen=True)
class _Form:
    """The fields that differ between TIFF and BigTIFF, as `struct` formats."""

    order: ByteOrder
    first: int  # position of the offset of the first directory
    count: str  # the type of a directory's number of tags
    offset: str  # the type of offsets and of a tag's number of values

    @property
    def entry(self) -> struct.Struct:
        """The format of an entry's tag, type and count. The value or its offset follows."""
        return struct.Struct(self.order + "HH" + self.offset)

    @property
    def inline(self) -> int:
        """The number of bytes of a value that fit into the directory itself."""
        return struct.calcsize("=" + self.offset)

    @property
    def per_entry(self) -> int:
        return self.entry.size + self.inline

    def number(self, letter: str, data: bytes, at: int) -> int | None:
        """Return a number; None if the file ends before it."""
        try:
            return int(struct.unpack_from(self.order + letter, data, at)[0])
        except struct.error:
            return None


class Directory:
    """The tags of one page.

    Args:
        data: the whole file.
        form: the file's form, as `directories` returns it.
        at: the offset of the directory.

    Raises:
        Unreadable: the file ends within the directory, or it has too many tags.
    """

    def __init__(self, data: bytes, form: _Form, at: int) -> None:
        self._data = data
        self.byte_order = form.order
        count = form.number(form.count, data, at)
        start = at + struct.calcsize("=" + form.count)
        if count is None or start + count * form.per_entry > len(data):
            raise Unreadable("the TIFF is truncated: it ends within its directory")
        if count > MAX_TAGS:
            raise Unreadable(f"the TIFF's directory has {count} tags; at most {MAX_TAGS} are read")
        self._values: dict[
            int, tuple[int, int, int]
        ] = {}  # tag -> type, count, offset of the values
        for index in range(count):
            entry = start + index * form.per_entry
            tag, kind, values = form.entry.unpack_from(data, entry)
            where: int | None = entry + form.entry.size
            if values * _BYTES.get(kind, 1) > form.inline:
                where = form.number(form.offset, data, entry + form.entry.size)
            if where is not None:
                self._values.setdefault(tag, (kind, values, where))

    def __contains__(self, tag: int) -> bool:
        return tag in self._values

    def count(self, tag: int) -> int:
        """Return the number of values of a tag."""
        return self._values.get(tag, (0, 0, 0))[1]

    def integers(self, tag: int, most: int = 64) -> tuple[int, ...] | None:
        """Return the values of a tag; None if the tag is missing.

        Raises:
            Unreadable: the values are no integers, more than `most`, or beyond the end of the file.
        """
        if tag not in self._values:
            return None
        kind, count, where = self._values[tag]
        if kind not in _INTEGERS:
            raise Unreadable(f"the TIFF is damaged: its tag {tag} does not hold integers")
        if count > most:
            raise Unreadable(f"the TIFF's tag {tag} has {count} values; at most {most} are read")
        if where + count * _BYTES[kind] > len(self._data):
            raise Unreadable(f"the TIFF is truncated: it ends before the values of its tag {tag}")
        dtype = np.dtype(_INTEGERS[kind]).newbyteorder(self.byte_order)
        return tuple(np.frombuffer(self._data, dtype, count, where).tolist())

    def integer(self, tag: int, default: int) -> int:
        """Return the first value of a tag."""
        values = self.integers(tag, 2**20)
        return values[0] if values else default

    def doubles(self, tag: int, most: int = 64) -> tuple[float, ...] | None:
        """Return the values of a tag with floats of 64 bits; None if it is missing or damaged."""
        kind, count, where = self._values.get(tag, (0, 0, 0))
        if kind != _DOUBLE or count > most or where + 8 * count > len(self._data):
            return None
        return struct.unpack_from(f"{self.byte_order}{count}d", self._data, where)

    def bytes_of(self, tag: int, most: int = 2**20) -> bytes | None:
        """Return the content of a tag with bytes or text; None if it is missing or too long."""
        kind, count, where = self._values.get(tag, (0, 0, 0))
        if kind not in _TEXTS or count > most or where + count > len(self._data):
            return None
        return self._data[where : where + count]

    def text(self, tag: int) -> str:
        """Return a tag's text up to its first NUL; an empty text if the tag is missing."""
        return (self.bytes_of(tag) or b"").split(b"\0")[0].decode("latin-1").strip()


def directories(data: bytes) -> tuple[_Form, list[int]]:
    """Return the file's form, and the offset of each directory in order.

    The chain ends at an offset outside the file, or at a directory that is already in it.

    Raises:
        Unreadable: the file ends before the first directory, or has more than `MAX_PAGES`.
    """
    order: ByteOrder = "<" if data[:2] == b"II" else ">"
    big = 43 in (data[2], data[3])
    form = _Form(order, 8, "Q", "Q") if big else _Form(order, 4, "H", "I")
    if struct.unpack_from(order + "H", data, 2)[0] != (43 if big else 42):
        raise Unreadable("the TIFF is damaged: its byte order mark and its version number disagree")
    if big and data[4:8] != struct.pack(order + "HH", 8, 0):
        raise Unreadable("the BigTIFF is damaged, or its offsets are not 8 bytes long")
    offsets: list[int] = []
    seen: set[int] = set()
    at = form.number(form.offset, data, form.first)
    while at and at not in seen:
        count = form.number(form.count, data, at)
        if not count:
            break
        offsets.append(at)
        seen.add(at)
        if len(offsets) > MAX_PAGES:
            raise Unreadable(f"the TIFF has more than {MAX_PAGES} pages")
        end = at + struct.calcsize("=" + form.count) + count * form.per_entry
        at = form.number(form.offset, data, end)
    if not offsets:
        raise Unreadable("the TIFF is truncated: it ends before its directory")
    return form, offsets
