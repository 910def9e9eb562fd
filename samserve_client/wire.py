"""The calls and answers that an exchange with a server is made of. Nothing here opens a socket."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """One HTTP request.

    Attributes:
        path: the path below the server's address, with its query.
        timeout_s: seconds to wait for the next byte of the answer; None: no limit.
        on_line: called with each line of a stream of events, while it comes.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    timeout_s: float | None = None
    on_line: Callable[[bytes], None] | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Wait:
    """A pause before the next call.

    Attributes:
        seconds: its length.
    """

    seconds: float


@dataclass(frozen=True)
class Answer:
    """The answer to a call.

    Attributes:
        headers: their names are in lower case.
        content: the body; empty if its lines went to `Call.on_line`.
    """

    status: int
    headers: Mapping[str, str]
    content: bytes


Exchange: TypeAlias = Generator["Call | Wait", "Answer | None", T]
"""Calls, and what becomes of their answers. Whoever drives it sends an Answer for each Call and
None after each Wait, and throws `ServerUnreachable` into it if a call cannot be made."""

EVENTS = "application/x-ndjson"
"""The media type of a stream of events."""


class Lines:
    """Cuts what arrives into lines, and gives each to a function as soon as it is complete."""

    def __init__(self, on_line: Callable[[bytes], None]) -> None:
        self._on_line = on_line
        self._begun: list[bytes] = []

    def feed(self, part: bytes) -> None:
        """Take the next bytes."""
        *complete, rest = part.split(b"\n")
        for line in complete:
            self._on_line(b"".join([*self._begun, line]))
            self._begun.clear()
        if rest:
            self._begun.append(rest)
