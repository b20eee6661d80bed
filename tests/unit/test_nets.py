"""To which addresses Caravan connects."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import closing

import pytest

from conformance.fakes.raw import raw_server
from proxy_app.domain import Backend
from proxy_app.errors import Unreachable
from proxy_app.upstream.client import Call, Limits, UpstreamClient
from proxy_app.upstream.nets import ANYWHERE, Nets
from proxy_app.upstream.probe import Prober

TENS = Nets((ipaddress.ip_network("10.0.0.0/8"),))
LIMITS = Limits(1.0, 1.0, 1.0)


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "192.168.1.5", "100.64.0.1", "::1", "203.0.113.9"])
def test_a_gpu_may_stand_anywhere(address: str) -> None:
    assert ANYWHERE.allows(address)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "64:ff9b::a9fe:a9fe",
        "224.0.0.1",
        "ff02::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "fd20:ce::254",
        "168.63.129.16",
        "192.0.0.192",
        "100.100.100.200",
    ],
)
def test_but_not_where_clouds_keep_credentials(address: str) -> None:
    assert not ANYWHERE.allows(address)
    assert not Nets((ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))).allows(address)


def test_networks_narrow_it() -> None:
    assert TENS.allows("10.9.9.9")
    assert TENS.allows("::ffff:10.9.9.9")
    assert not TENS.allows("127.0.0.1")


def test_the_relay_sends_nothing_to_an_address_that_is_not_allowed() -> None:
    with raw_server(lambda connection, server: None) as server:
        backend = Backend(1, "a", f"http://localhost:{server.port}", 0)
        with closing(UpstreamClient(TENS)) as client, pytest.raises(Unreachable, match="CARAVAN_BACKEND_NETS"):
            client.send(backend, Call("GET", "/"), LIMITS)


def test_nor_do_the_polls() -> None:
    with raw_server(lambda connection, server: None) as server:
        backend = Backend(1, "a", f"http://localhost:{server.port}", 0)
        with closing(Prober(backend, 1.0, 1.0, "1.1 x", TENS)) as prober, pytest.raises(Unreachable, match="NETS"):
            prober.tags()


def test_a_unix_socket_has_no_network() -> None:
    here, there = socket.socketpair()
    with here, there:
        TENS.check(here)
