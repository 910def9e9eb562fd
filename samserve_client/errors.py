"""The errors that a client raises besides those that the server sends.

    SamserveError
    ├── ServerUnreachable   nothing answers at the server's address
    │   └── BrokenOff       the connection ended before the answer did
    ├── NotReady            the server has no model yet
    ├── UnexpectedAnswer    what answers is no samserve server
    ├── UnsupportedByServer the server is older than what was asked of it
    └── …                   samserve.errors: the server's own refusals, by their code

A wrong address or a misspelled keyword is an ordinary ValueError or TypeError.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from samserve.errors import SamserveError, TryLater


class ServerUnreachable(SamserveError):
    """Nothing answers at the server's address."""

    status = 503
    code = "server_unreachable"


class BrokenOff(ServerUnreachable):
    """The connection ended before the answer did."""

    code = "broken_off"


class NotReady(SamserveError):
    """The server runs, but has loaded no model yet."""

    status = 503
    code = "not_ready"


class UnexpectedAnswer(SamserveError):
    """The answer is none of a samserve server's."""

    status = 502
    code = "unexpected_answer"


class UnsupportedByServer(SamserveError):
    """The server is older than what was asked of it."""

    status = 501
    code = "unsupported_by_server"


HINTS = {
    "unauthorized": "Give a key: samserve.Client(key=…), --key or SAMSERVE_API_KEY.",
}
"""What to do about a refusal of the server, where its message does not say it for our users."""


def error_of(
    status: int, content: bytes, where: str, retry_after_s: int | None = None
) -> SamserveError:
    """Return the error that an answer of the server stands for.

    Args:
        where: the server's address, for messages.
        retry_after_s: the header Retry-After.
    """
    try:
        error = json.loads(content)["error"]
        code, message, field = error["code"], error["message"], error.get("field")
    except (ValueError, KeyError, TypeError):
        return UnexpectedAnswer(
            f"{where} answers {status}, and not as a samserve server does. Is the address right?"
        )
    if (status, code, message) == (404, "not_found", "Not Found."):
        # That is what a server says about a path that it does not have.
        message = f"{where} has no such path. Is the address right?"
    return error_from(status, code, message, field, retry_after_s)


def error_from(
    status: int, code: str, message: str, field: str | None, retry_after_s: int | None = None
) -> SamserveError:
    """Return the error with this code; a `SamserveError` if the code is not known here."""
    kind = _kinds().get(code, SamserveError)
    if code in HINTS:
        message = f"{message} {HINTS[code]}"
    if issubclass(kind, TryLater):
        error: SamserveError = kind(message, retry_after_s or 1)
    else:
        error = kind(message, field)
    # A code may be one of a newer server.
    error.__dict__.update(status=status, code=code)
    return error


def _kinds() -> Mapping[str, type[SamserveError]]:
    # The least specific class of each code comes first, and stays.
    kinds: dict[str, type[SamserveError]] = {}
    for kind in _below(SamserveError):
        if "code" in kind.__dict__:
            kinds.setdefault(kind.code, kind)
    return kinds


def _below(kind: type[Any]) -> Iterator[type[Any]]:
    for child in kind.__subclasses__():
        yield child
        yield from _below(child)
