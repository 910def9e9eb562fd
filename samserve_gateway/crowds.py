"""The connections that wait for their clients, and which of them goes first if there is no room."""

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
        """Yield the connections of the address that has most of them, then those of the next one.

        Those of an address that wait for longest come first. So a client that opens more and more
        connections loses its own.
        """
        addresses = sorted(self._of_address, key=lambda address: -len(self._of_address[address]))
        for address in addresses:
            yield from self._of_address[address]
