"""Which prompts go to the automask lane at once, because the prompt lane would refuse them.

The prompt lane gives each request a small share of work, so that no click waits long for another
request. It refuses what takes more (421 `heavy`), and the gateway then sends the request to the
automask lane, which answers it as a prompt. A picture that was refused once goes there directly.
"""

from __future__ import annotations

from collections import OrderedDict

from .bodies import Body

LARGE_BYTES = 2**24
"""A larger body always takes more work than the prompt lane's share: its picture alone has 12 MiB
as a file."""

MAX_REMEMBERED = 2**10


class HeavyPictures:
    """Remembers the pictures that the prompt lanes refused, by their digests."""

    def __init__(self) -> None:
        self._refused: OrderedDict[tuple[str, str], None] = OrderedDict()

    def is_heavy(self, family: str, body: Body, content: bytes) -> bool:
        """Return whether this content of the body shall go to the automask lane at once.

        A picture that is sent as its digest need not be decoded. So only a whole picture counts.
        """
        if len(content) > LARGE_BYTES:
            return True
        key = (family, body.reference or "")
        if key not in self._refused or not body.has_picture(content):
            return False
        self._refused.move_to_end(key)
        return True

    def remember(self, family: str, body: Body, content: bytes) -> None:
        """Remember that a prompt lane of the family refused this content of the body."""
        if body.reference is not None and body.has_picture(content):
            self._refused[family, body.reference] = None
            if len(self._refused) > MAX_REMEMBERED:
                self._refused.popitem(last=False)
