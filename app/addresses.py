"""Addresses of clients, and the networks under which they are counted."""

from __future__ import annotations

import ipaddress


def read_address(peer: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """A peer's address, None if it is none; IPv4 as such also on a socket of both kinds."""
    try:
        address = ipaddress.ip_address((peer or "").partition("%")[0])
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def client_network(peer: str) -> str:
    """What an address is counted under: itself, of IPv6 its /64."""
    address = read_address(peer)
    if address is None:
        return peer[:64]
    length = 32 if address.version == 4 else 64
    return str(ipaddress.ip_network((address, length), strict=False))


def network_of(peer: str | None) -> str | None:
    """The network of an address: /24 of IPv4, /64 of IPv6; what is no address is not repeated."""
    address = read_address(peer)
    if address is None:
        return None
    length = 24 if address.version == 4 else 64
    return str(ipaddress.ip_network((address, length), strict=False))
