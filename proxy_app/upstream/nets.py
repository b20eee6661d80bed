"""To which addresses Caravan connects: a backend's name may lead anywhere, and somebody else may own that name.

Source: OWASP ASVS 5.0, 1.3.6 and 13.2.4. The address that is judged is the one that was really connected to, before a
byte is sent: a name that resolves to something else the next time (DNS rebinding) changes nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Where clouds keep the credentials of their machines (and nobody keeps a GPU).
_NEVER = (ipaddress.ip_network("169.254.0.0/16"), ipaddress.ip_network("fd00:ec2::/32"))


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
        found = ipaddress.ip_address(text.partition("%")[0])
        address = getattr(found, "ipv4_mapped", None) or found
        if address.is_multicast or any(address in network for network in _NEVER):
            return False
        return not self.allowed or any(address in network for network in self.allowed)


ANYWHERE = Nets()
