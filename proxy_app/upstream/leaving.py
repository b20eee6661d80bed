"""Seeing in the hub that a client hangs up, while nobody reads from it."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

import gevent
from gevent.monkey import get_original

# gevent's own poll would switch greenlets, which the hub cannot.
_poll = get_original("select", "poll")
READABLE = 1
# How often the state of a connection is looked at that has something to read, in seconds; the promise is 0.2.
LOOK_S = 0.05


class Leaving:
    """Calls once, in the hub, when a client closes its connection, or its half of it.

    Owned by: the request; `close` ends it. What a client sends meanwhile (a pipelined request) is no hang-up and stays
    where it is; since it makes the connection readable for good, the connection's state is looked at from then on.
    """

    def __init__(self, client: socket.socket, call: Callable[[], None]) -> None:
        self._client, self._call = client, call
        self._loop = gevent.get_hub().loop
        self._readable: Any = self._loop.io(client.fileno(), READABLE)
        # Few clients say anything more: no other request pays for a timer.
        self._timer: Any = None

    def start(self) -> None:
        self._readable.start(self._on_readable)

    def stop(self) -> None:
        self._readable.stop()
        if self._timer is not None:
            self._timer.stop()

    def close(self) -> None:
        self.stop()
        self._readable.close()
        if self._timer is not None:
            self._timer.close()

    def _on_readable(self) -> None:
        self._readable.stop()
        if not self._look():
            self._timer = self._loop.timer(LOOK_S, LOOK_S)
            self._timer.start(self._look)

    def _look(self) -> bool:
        """Has it left?"""
        poll = _poll()
        poll.register(self._client.fileno(), select.POLLRDHUP)
        gone = bool(poll.poll(0))
        if gone:
            self.stop()
            self._call()
        return gone
