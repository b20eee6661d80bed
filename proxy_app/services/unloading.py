"""Ending a model's stay in memory on all backends at once."""

from __future__ import annotations

import logging
from contextlib import closing
from functools import partial

from proxy_app.domain import Backend, Fleet
from proxy_app.errors import UpstreamError
from proxy_app.upstream.aside import Aside
from proxy_app.upstream.client import Call, Limits, UpstreamClient

log = logging.getLogger(__name__)

# Ollama answers such a request at once.
LIMITS = Limits(connect_s=2.0, first_byte_s=5.0, idle_s=5.0)
LONGEST = 64 << 10


def unload_everywhere(upstream: UpstreamClient, fleet: Fleet, model: str, call: Call) -> None:
    """Have every live holder let go of a model: whoever asks does not know how many have it loaded.
    The request itself goes on as any other does, to one of them once more: its answer is the client's.

    Args:
        model: its canonical name.
        call: what only ends its stay; nothing is loaded for it.
    """
    holders = [fleet.by_id[held.backend_id].backend for held in fleet.live_holders(model)]
    if len(holders) < 2:
        return
    asked = [Aside(partial(_ask, upstream, backend, call)) for backend in holders]
    try:
        for aside in asked:
            aside.wait()
    finally:
        for aside in asked:
            aside.cancel()


def _ask(upstream: UpstreamClient, backend: Backend, call: Call) -> None:
    try:
        with closing(upstream.send(backend, call, LIMITS)) as answer:
            answer.read_up_to(LONGEST, LIMITS.idle_s)
    except UpstreamError as exc:
        log.info("%s: %s", call.request_id, exc)
