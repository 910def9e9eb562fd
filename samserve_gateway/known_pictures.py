"""A picture that the workers know goes to them as a digest, not again in full.

QuPath sends the whole view with every click. On its way through TorchServe and into the worker
a megabyte costs several milliseconds, only to be found known there.

Remembers digests only. A worker that no longer knows the picture says so, and gets it in full; so
does one on another machine that never knew it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

from samserve.errors import UnknownImage

from .bodies import Body

MAX_KNOWN = 2**14
"""Many more than the workers keep; some megabytes of digests."""


class KnownPictures:
    """Which pictures the workers have answered for.

    Args:
        count: told of each picture that is sent: `known`, as a digest; `forgotten`, in full after
            all; `full`, at once.
    """

    def __init__(self, count: Callable[[str], None] = lambda outcome: None) -> None:
        self._count = count
        self._known: OrderedDict[tuple[str, str | None], None] = OrderedDict()

    def ways(self, family: str, body: Body) -> Iterator[tuple[bytes, str]]:
        """What to send, and its Content-Type: each in turn until one is not `refused`.

        Args:
            family: of lanes, whose workers share what they know.
        """
        key = (family, body.reference)
        if key in self._known and body.worth_abridging:
            self._known.move_to_end(key)
            self._count("known")
            yield body.abridged(), "application/json"
            self._count("forgotten")
        else:
            self._count("full")
        yield body.whole()

    def remember(self, family: str, body: Body) -> None:
        """This body was answered: its picture is known now."""
        if body.worth_abridging:
            self._known[family, body.reference] = None
            if len(self._known) > MAX_KNOWN:
                self._known.popitem(last=False)


def refused(status: int) -> bool:
    """Whether a worker wants the picture itself."""
    return status == UnknownImage.status
