"""Telling open pages that something may look different now (Server-Sent Events, WHATWG HTML §9.2)."""

from __future__ import annotations

import time
from collections.abc import Iterator

from proxy_app.errors import RegistryAway
from proxy_app.services.runtime import Runtime
from proxy_app.web.respond import Raw, runtime

# How often is looked, and how often something is said so that a page that has gone is noticed. Seconds.
LOOK_S = 1.0
ALIVE_S = 15.0


def live() -> Raw:
    headers = [("Content-Type", "text/event-stream"), ("Cache-Control", "no-store"), ("X-Accel-Buffering", "no")]
    return Raw(_events(runtime()), 200, headers)


def _events(services: Runtime) -> Iterator[bytes]:
    seen, said_s = _pulse(services), time.monotonic()
    yield b"retry: 2000\n\n"
    while not services.draining:
        time.sleep(LOOK_S)
        pulse = _pulse(services)
        if pulse != seen:
            seen, said_s = pulse, time.monotonic()
            yield b"event: changed\ndata: {}\n\n"
        elif time.monotonic() - said_s > ALIVE_S:
            said_s = time.monotonic()
            yield b": alive\n\n"


def _pulse(services: Runtime) -> object:
    try:
        return services.admin.pulse()
    except RegistryAway:
        return "away"
