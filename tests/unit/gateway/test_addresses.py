"""Which addresses are this machine's own, and which count as one client."""

from __future__ import annotations

import pytest

from samserve_gateway.addresses import client_at, is_loopback


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "localhost", "::1", "::ffff:127.0.0.1", "2130706433"]
)
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "0", "", "::", "10.0.0.1", "::ffff:10.0.0.1", "no.such.invalid", "x" * 300]
)
def test_everything_else_may_be_reached_by_others(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        (None, "unknown"),
        ("somebody; DROP TABLE", "unknown"),
        ("9" * 10_000, "unknown"),
    ],
)
def test_the_client_at_an_address(address: str | None, client: str) -> None:
    assert client_at(address) == client
