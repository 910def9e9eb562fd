"""The connections that wait for their clients, and the order in which they lose their places."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

C = TypeVar("C")


class Crowd(Generic[C]):
    """Connections that wait for their clients, by the clients' addresses."""

    def __init__(self) -> None:
        self._of_address: dict[str, dict[C, None]] = {}  # those that wait for longest come first

    def add(self, connection: C, address: str) -> None:
        """Say that a connection waits from now on."""
        self._of_address.setdefault(address, {})[connection] = None

    def remove(self, connection: C, address: str) -> None:
        """Say that a connection waits no longer, if it did."""
        waiting = self._of_address.get(address, {})
        waiting.pop(connection, None)
        if not waiting:
            self._of_address.pop(address, None)

    def least_needed(self) -> Iterator[C]:
        """Yield the connections in the order in which they may be closed to make room.

        The address with the most connections comes first. Among the connections of one address, the
        one that has waited longest comes first. So a client that opens more and more connections
        loses its own.
        """
        addresses = sorted(self._of_address, key=lambda address: -len(self._of_address[address]))
        for address in addresses:
            yield from self._of_address[address]
