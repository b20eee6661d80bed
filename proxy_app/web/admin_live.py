"""Telling open pages that something may look different now (Server-Sent Events, WHATWG HTML §9.2)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

from flask import g, request

from proxy_app.errors import RegistryAway
from proxy_app.services.runtime import Runtime
from proxy_app.web.respond import Raw, runtime

# How often is looked, how often whether the login still holds, and how often something is said so that a page that has
# gone is noticed. Seconds.
LOOK_S = 1.0
CHECK_S = 5.0
ALIVE_S = 15.0


def live() -> Raw:
    """The stream; it ends with the login or the key that opened it, and keeps a login from being idle."""
    headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")]
    return Raw(_events(runtime(), _door(runtime())), 200, headers)


def _door(services: Runtime) -> Callable[[], object]:
    """What tells whether who asks now would still be let in later."""
    token, key_id, address = g.get("session_token"), g.caller.key_id, request.environ.get("REMOTE_ADDR", "")
    if token:
        return partial(services.admin.sessions.caller, token, address)
    if key_id:
        return partial(services.access.known, key_id, services.access.mark(key_id) or "", address)
    return lambda: True


def _events(services: Runtime, is_let_in: Callable[[], object]) -> Iterator[bytes]:
    seen, said_s = _pulse(services), time.monotonic()
    checked_s = said_s
    yield b"retry: 2000\n\n"
    while not services.draining:
        time.sleep(LOOK_S)
        if time.monotonic() - checked_s > CHECK_S:
            checked_s = time.monotonic()
            if not _still(is_let_in):
                return
        pulse = _pulse(services)
        if pulse != seen:
            seen, said_s = pulse, time.monotonic()
            yield b"event: changed\ndata: {}\n\n"
        elif time.monotonic() - said_s > ALIVE_S:
            said_s = time.monotonic()
            yield b": alive\n\n"


def _still(is_let_in: Callable[[], object]) -> bool:
    try:
        return bool(is_let_in())
    except RegistryAway:
        return True


def _pulse(services: Runtime) -> object:
    try:
        return services.admin.pulse()
    except RegistryAway:
        return "away"
