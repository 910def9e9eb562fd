"""This module decides when a call is made again: one rule for both clients.

A server that is busy (503) or has given a client its share (429) says in `Retry-After` when to come
back. A call is safe to repeat: it changes nothing at the server. urllib3 has such a rule, too, but
only for the synchronous client, and it bounds the number of attempts and not their time.
"""

from __future__ import annotations

import random
import time

from samserve.errors import SamserveError

from .errors import ServerUnreachable, UnexpectedAnswer, error_of
from .wire import Answer, Call, Exchange, Wait

AGAIN = (429, 503)
"""The statuses after which the server asks for another attempt."""

LONGEST_WAIT_S = 60.0
"""A server's Retry-After that is longer counts as this."""

RECONNECTIONS = 1
"""How often a call is made again whose connection broke."""


def answered(call: Call, where: str, patience_s: float) -> Exchange[Answer]:
    """Make a call, again if the server is busy, and return its answer with a status below 400.

    Args:
        where: the server's address, for messages.
        patience_s: seconds that all pauses together may take.

    Raises:
        SamserveError: the server refuses, or is still busy after that time.
        ServerUnreachable: nothing answers.
    """
    begun, broken, attempt = time.monotonic(), 0, 0
    while True:
        try:
            answer = yield call
        except ServerUnreachable:
            broken += 1
            if broken > RECONNECTIONS or call.on_line is not None:
                raise
            yield Wait(0.2)
            continue
        if answer is None:
            raise TypeError("an exchange needs an Answer for each Call")
        if answer.status < 300:
            return answer
        error = refusal(answer, where)
        pause = pause_s(answer, attempt)
        if pause is None or time.monotonic() - begun + pause > patience_s:
            raise error
        attempt += 1
        yield Wait(pause)


def refusal(answer: Answer, where: str) -> SamserveError:
    """Return the error that an answer with another status than 2xx stands for."""
    target = answer.headers.get("location")
    if 300 <= answer.status < 400 and target:
        return UnexpectedAnswer(f"{where} sends clients to another address: use {target[:200]}.")
    return error_of(answer.status, answer.content, where, _retry_after_s(answer))


def pause_s(answer: Answer, attempt: int) -> float | None:
    """Return the seconds to wait before the next attempt; None if there shall be none.

    Many clients that were refused together must not come back together, so a part is random.
    """
    if answer.status not in AGAIN:
        return None
    asked = _retry_after_s(answer)
    base = min(2.0**attempt / 2, 10.0) if asked is None else min(float(asked), LONGEST_WAIT_S)
    return base + random.uniform(0, max(0.1, base / 4))


def _retry_after_s(answer: Answer) -> int | None:
    """Return the header Retry-After in seconds. A date counts as absent: no samserve sends one."""
    text = answer.headers.get("retry-after", "")
    return int(text) if text.isdecimal() else None
