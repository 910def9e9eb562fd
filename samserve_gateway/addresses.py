"""Network addresses: which of them are this machine's own, and which belong to one client."""

from __future__ import annotations

import ipaddress
import socket

IPv6_NETWORK_BITS = 64
"""One client has at least this network of IPv6, and may send from any address in it."""


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches a server that listens on this address or name."""
    try:
        found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return False  # the server will not start; until then, assume the worse
    return bool(found) and all(_ip(address).is_loopback for address in found)


def client_at(address: str | None) -> str:
    """Return the name by which requests from this address are counted."""
    try:
        ip = _ip(address or "")
    except ValueError:
        return "unknown"  # a Unix socket, or a proxy that names no address
    if isinstance(ip, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(ip), IPv6_NETWORK_BITS), strict=False))
    return str(ip)


def _ip(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return mapped or ip
