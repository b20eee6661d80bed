"""Slow and silent clients cost neither memory nor other clients."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from conformance.fakes.http import RawClient
from conformance.judge import check_good
from conformance.row import TRIES, Broken, Group, check
from conformance.scripts import Flood
from conformance.site import Site

GROUP = Group("clients", "Slow and silent clients")
MIB = 1 << 20
# Far above what the kernel's own buffers on both sides of a gateway hold (about 20 MiB at their largest).
FLOOD_BYTES = 160 * MIB
TAKEN_BYTES = 64 * MIB
# Without progress for this long in seconds, a flood stands.
STANDING_S = 1.0
# Gateways wait a minute by default, some 75 s.
SILENCE_S = 90.0
IDLE_CLIENTS = 100
BESIDE_S = 1.0


def settled(flood: Flood, site: Site) -> int:
    """Wait until a flood stands or is beyond all bounds; returns how many bytes it was rid of."""
    seen, since = -1, time.monotonic()

    def stands() -> bool:
        nonlocal seen, since
        if flood.sent_bytes != seen:
            seen, since = flood.sent_bytes, time.monotonic()
        return seen > TAKEN_BYTES or (seen > 0 and time.monotonic() - since > STANDING_S)

    site.wait(stands, "the backend went on sending", 15.0)
    return seen


@GROUP.row
def slow_reader(site: Site) -> None:
    """A client that stops reading stalls its backend before 64 MiB, and nobody else waits for it."""
    flood = Flood(FLOOD_BYTES)
    site.strike(flood)
    with site.client() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        site.send(client)
        taken = settled(flood, site)
        check(taken <= TAKEN_BYTES, f"the gateway took {taken // MIB} MiB for a client that takes nothing")
        check_good(site, site.ask(), "of another client, ")


def beside(site: Site, count: int, occupy: Callable[[RawClient], None]) -> int:
    """Ask beside so many other clients, new ones at each try; returns how often it was asked."""
    for number in range(1, TRIES + 1):
        with ExitStack() as stack:
            for _ in range(count):
                occupy(stack.enter_context(site.client()))
            with suppress(TimeoutError):
                check_good(site, site.ask(timeout_s=BESIDE_S))
                return number
    raise Broken(f"no answer within {BESIDE_S:g} s, {TRIES} times")


@GROUP.row
def idle_connections(site: Site) -> None:
    """Beside 100 silent connections a client gets its answer within a second."""
    beside(site, IDLE_CLIENTS, lambda client: None)


@GROUP.row
def slow_senders(site: Site) -> None:
    """Beside 50 clients that stopped in the middle of their requests one gets its answer within a second."""
    half = site.raw_head(["Content-Length: 100"]) + b"{"
    asked = beside(site, IDLE_CLIENTS // 2, lambda client: client.send(half))
    check(len(site.asked()) <= asked, "one of them reached a backend")


def check_closed(site: Site, data: bytes) -> None:
    """Send half a request and then nothing; the gateway has to end that some day."""
    with site.client() as client:
        client.send(data)
        client.sock.settimeout(SILENCE_S)
        try:
            while client.sock.recv(65536):
                pass
        except TimeoutError:
            check(False, f"the connection was open after {SILENCE_S:g} s")
        except ConnectionError:
            return


@GROUP.waiting_row
def silence_in_the_head(site: Site) -> None:
    """A client that falls silent in the middle of its headers is closed within 90 s."""
    check_closed(site, site.raw_head(["X-Slow: 1"])[:-2])


@GROUP.waiting_row
def silence_in_the_body(site: Site) -> None:
    """A client that falls silent in the middle of its body is closed within 90 s."""
    check_closed(site, site.raw_head(["Content-Length: 100"]) + b"{")
    check(not site.asked(), "half a request reached a backend")
