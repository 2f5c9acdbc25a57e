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
    """The network that a client is counted under: its address, of IPv6 its /64.

    What is no address is itself, cut to 64 characters.
    """
    return _network(peer, 32) or peer[:64]


def network_of(peer: str | None) -> str | None:
    """The network of an address: /24 of IPv4, /64 of IPv6; what is no address is not repeated."""
    return _network(peer, 24)


def _network(peer: str | None, ipv4_bits: int) -> str | None:
    address = read_address(peer)
    if address is None:
        return None
    length = ipv4_bits if address.version == 4 else 64
    return str(ipaddress.ip_network((address, length), strict=False))
