"""To which addresses Caravan connects: a backend's name may lead anywhere, and somebody else may own that name.

Source: OWASP ASVS 5.0, 1.3.6 and 13.2.4. The address that is judged is the one that was really connected to, before a
byte is sent: a name that resolves to something else the next time (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# Link-local addresses, and where clouds keep the credentials of their machines (and nobody keeps a GPU): AWS, Google,
# Azure, Oracle, Alibaba.
_NEVER = tuple(
    map(
        ipaddress.ip_network,
        (
            "169.254.0.0/16",
            "fe80::/10",
            "fd00:ec2::/32",
            "fd20:ce::254/128",
            "168.63.129.16/32",
            "192.0.0.192/32",
            "100.100.100.200/32",
        ),
    )
)
# An IPv4 address in the last 32 bits (RFC 6052 §2.1): a way around what is said of that address.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True)
class Nets:
    """Args: allowed: networks in which backends may be; none: everywhere but where they never are."""

    allowed: tuple[Network, ...] = ()

    def check(self, connection: socket.socket) -> None:
        """See to it that a connection leads where it may.

        Raises:
            OSError: it does not; it is closed.
        """
        if connection.family not in (socket.AF_INET, socket.AF_INET6):
            return
        if not self.allows(str(connection.getpeername()[0])):
            connection.close()
            raise OSError("the backend's address is not one that Caravan may connect to (CARAVAN_BACKEND_NETS)")

    def allows(self, text: str) -> bool:
        address = _embedded(ipaddress.ip_address(text.partition("%")[0]))
        if address.is_multicast or any(address in network for network in _NEVER):
            return False
        return not self.allowed or any(address in network for network in self.allowed)


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, or itself."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address


ANYWHERE = Nets()
