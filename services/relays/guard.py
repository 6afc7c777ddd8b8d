"""Which addresses a connection may go to: relays are named by strangers, who must not reach this host or its network through us.

The host is resolved once and the connection made to the very addresses that were looked at: a name that resolves differently the next time
(DNS rebinding) gains nothing. Redirects are not followed.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final

ADDRESSES_MAX: Final = 8
"""So many addresses of one name are tried."""
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
"""RFC 6052: the last four bytes are an IPv4 address."""

Address = tuple[socket.AddressFamily, tuple[str, int]]


class AddressRefusedError(OSError):
    """The host has an address that a stranger may not send us to."""


def is_public(address: str) -> bool:
    """Whether an IP address is reachable, and meant to be, from the whole internet."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in _NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return ip.is_global and not ip.is_multicast and not ip.is_unspecified


def check_addresses(addresses: Sequence[Address], *, private_allowed: bool) -> Sequence[Address]:
    """Return the addresses to try. Raises AddressRefusedError when any of them is private: such a name is never a relay's."""
    if not private_allowed and not all(is_public(where[0]) for _, where in addresses):
        raise AddressRefusedError("the relay's address is private")
    return addresses[:ADDRESSES_MAX]


async def open_socket(host: str, port: int, *, private_allowed: bool) -> socket.socket:
    """Return a TCP socket, connected to the first address that answers. Raises OSError, AddressRefusedError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses: list[Address] = [(family, (str(where[0]), int(where[1]))) for family, _, _, _, where in found]
    problem: OSError = OSError("the relay's host has no address")
    for family, where in check_addresses(addresses, private_allowed=private_allowed):
        try:
            return await _connected(family, where)
        except OSError as error:
            problem = error
    raise problem


async def _connected(family: socket.AddressFamily, where: tuple[str, int]) -> socket.socket:
    connection = socket.socket(family, socket.SOCK_STREAM)
    try:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(connection, where)
    except BaseException:
        connection.close()
        raise
    return connection
