"""Who goes first of those that wait: whoever has most, and of those the oldest."""

from __future__ import annotations

import asyncio

import pytest

from samserve_gateway.connections import Connections
from samserve_gateway.crowds import Crowd
from tests.unit.gateway.test_connections import A, B, C, Idle


def test_the_oldest_of_whoever_has_most_goes_first() -> None:
    crowd: Crowd[int] = Crowd()
    assert list(crowd.least_needed()) == []
    for connection, address in enumerate("abbacbc"):
        crowd.add(connection, address)
    assert list(crowd.least_needed()) == [1, 2, 5, 0, 3, 4, 6]
    crowd.remove(1, "b")
    crowd.remove(2, "b")
    crowd.add(0, "a")  # it waits already
    assert list(crowd.least_needed()) == [0, 3, 4, 6, 5]


def test_what_is_removed_leaves_nothing() -> None:
    crowd: Crowd[int] = Crowd()
    crowd.add(1, "a")
    for _ in range(2):
        crowd.remove(1, "a")
    crowd.remove(2, "b")
    assert not crowd._of_address


@pytest.mark.parametrize(
    ("open_before", "closed_first"),
    [
        ([(A, 0)] * 3, 0),
        ([(A, 0), (B, 0), (B, 0)], 1),  # whoever has most loses one
        ([(A, 0), (B, 7), (B, 7)], 0),  # an answer that is being read is kept
        ([(A, 7), (B, 7), (C, 7)], None),
        ([("2001:db8::1", 0), (B, 0), ("2001:db8::2", 0)], 0),  # one client's network
    ],
)
def test_who_makes_room(open_before: list[tuple[str, int]], closed_first: int | None) -> None:
    async def open_all() -> list[int]:
        counted = Connections(3, 100)
        connections = [Idle(unread) for _, unread in open_before]
        for connection, (address, _) in zip(connections, open_before, strict=True):
            assert counted.add(connection, address) is None
        another = Idle()
        assert (counted.add(another, "192.0.2.9") is None) == (closed_first is not None)
        gone = [number for number, one in enumerate(connections) if one.unread < 0]
        for connection in (*connections, another):
            counted.remove(connection)
        assert len(counted) == 0
        return gone

    assert asyncio.run(open_all()) == ([] if closed_first is None else [closed_first])


def test_the_addresses_of_one_network_count_together() -> None:
    async def open_all() -> list[bool]:
        counted = Connections(100, 2)
        addresses = ["2001:db8::1", "2001:db8::2:1", "2001:db8::3", "2001:db8:0:1::1"]
        connections = [Idle() for _ in addresses]
        welcome = [
            counted.add(connection, address) is None
            for connection, address in zip(connections, addresses, strict=True)
        ]
        for connection in connections:
            counted.remove(connection)
        return welcome

    assert asyncio.run(open_all()) == [True, True, False, True]
