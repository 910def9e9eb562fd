"""A picture that the workers know goes to them as a digest, not in full.

QuPath sends the whole view with every click. A megabyte takes several milliseconds through
TorchServe into the worker, which then finds that it has the picture's embedding already.

The gateway remembers digests only. A worker that does not know the picture answers 409 and gets
it in full: it has forgotten the picture, or it is on a machine that never had it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from .bodies import Body

MAX_KNOWN = 2**14
"""Digests remembered, some megabytes in all. The workers keep far fewer pictures."""


class KnownPictures:
    """Remembers the pictures for which the workers have answered.

    Args:
        count: called for each picture sent, with `known` (sent as its digest), `forgotten` (sent
            in full after a refused digest) or `full` (sent in full at once).
    """

    def __init__(self, count: Callable[[str], None] = lambda outcome: None) -> None:
        self._count = count
        self._known: OrderedDict[tuple[str, str | None], None] = OrderedDict()

    def contents(self, family: str, body: Body) -> Iterator[tuple[bytes, str]]:
        """Yield what to send, and its Content-Type: each if the one before was answered with 409.

        Args:
            family: the family of lanes, whose workers share the pictures that they know.
        """
        key = (family, body.reference)
        if key in self._known and body.can_be_abridged:
            self._known.move_to_end(key)
            self._count("known")
            yield body.abridged(), "application/json"
            self._count("forgotten")
        else:
            self._count("full")
        yield body.whole()

    def remember(self, family: str, body: Body) -> None:
        """Remember that the family's workers have answered for the body's picture."""
        if body.can_be_abridged:
            self._known[family, body.reference] = None
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)
