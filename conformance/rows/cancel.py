"""A client that leaves ends the work of the backend."""

from __future__ import annotations

from collections.abc import Callable

from conformance.fakes.faults import Stall, StallBeforeHeaders, StreamThen
from conformance.fakes.http import RawClient
from conformance.judge import check_good
from conformance.row import TRIES, Group, check
from conformance.site import Site

GROUP = Group("cancel", "A client that leaves")
# From the client's close to the backend's, in seconds.
CANCEL_S = 0.2
GIVE_UP_S = 5.0

Leave = Callable[[RawClient], None]


def leaves(site: Site, stream: bool, begun: bool, leave: Leave) -> None:
    """A client leaves, before the answer or in mid-stream; the backend has to hear of it in time."""
    site.always(StreamThen(2, Stall) if begun else StallBeforeHeaders)
    took_s: list[float] = []
    for count in range(1, TRIES + 1):
        took_s.append(one_departure(site, site.body(stream=stream), (count, begun), leave))
        if took_s[-1] <= CANCEL_S:
            return
    check(False, "the backend worked on for " + ", ".join(f"{each * 1000:.0f}" for each in took_s) + " ms")


def one_departure(site: Site, body: bytes, at: tuple[int, bool], leave: Leave) -> float:
    """Ask, leave, and return how long in seconds the backend's connection outlived the client's."""
    count, begun = at
    client = site.client()
    try:
        site.send(client, body=body)
        request = site.wait_asked(count=count)
        if begun:
            next(client.iter_body(client.read_head()))
        left_at = site.now()
        leave(client)
    finally:
        client.close()
    gone = request.client_gone.wait(GIVE_UP_S)
    check(gone, f"the backend was still at work after {GIVE_UP_S:g} s")
    return request.at + (request.gone_after_s or 0.0) - left_at


@GROUP.row
def before_a_stream(site: Site) -> None:
    """A client that leaves before the first token (model load, prefill) frees the backend within 200 ms."""
    leaves(site, True, False, RawClient.close)


@GROUP.row
def before_a_whole_answer(site: Site) -> None:
    """A client that leaves while a whole answer is made frees the backend within 200 ms."""
    leaves(site, False, False, RawClient.close)


@GROUP.row
def in_mid_stream(site: Site) -> None:
    """A client that leaves in mid-stream frees the backend within 200 ms, though no token is due."""
    leaves(site, True, True, RawClient.close)


@GROUP.row
def by_reset(site: Site) -> None:
    """A client that leaves with an RST before the first token frees the backend within 200 ms."""
    leaves(site, True, False, RawClient.abort)


@GROUP.row
def no_second_try_for_nobody(site: Site) -> None:
    """Nothing is asked again for a client that has left."""
    site.always(StallBeforeHeaders)
    client = site.client()
    try:
        site.send(client)
        request = site.wait_asked()
    finally:
        client.close()
    check(request.client_gone.wait(GIVE_UP_S), f"the backend was still at work after {GIVE_UP_S:g} s")
    site.revive()
    check_good(site, site.ask())
    check(len(site.asked()) == 2, f"the backends were asked {len(site.asked()) - 1} times for it")
