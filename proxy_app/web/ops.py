"""What operators and load balancers ask."""

from __future__ import annotations

from proxy_app.web.respond import Raw, runtime, text_answer

# A connect timeout and a poll's usual time.
FIRST_LOOK_S = 3.0


def livez() -> Raw:
    """The process answers; nothing else is looked at."""
    return text_answer(b"ok\n")


def readyz() -> Raw:
    """Send traffic here? Not while draining, and not before the backends were looked at once.

    One that takes long to answer its first probe holds nothing up once another one is up.
    """
    services = runtime()
    if services.draining:
        return text_answer(b"draining\n", 503)
    fleet = services.reloader.fleet
    if not (fleet.complete or (fleet.discovered and services.age_s > FIRST_LOOK_S)):
        return text_answer(b"the backends were not looked at yet\n", 503)
    return text_answer(b"ok\n")
