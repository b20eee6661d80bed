"""Routes about the account at ollama.com that one backend is signed in with."""

from __future__ import annotations

from flask import request

from proxy_app.upstream.client import Call
from proxy_app.web.bodies import read_short_body
from proxy_app.web.hangup import GunicornClient
from proxy_app.web.relayed import origin, passed
from proxy_app.web.respond import Raw, runtime


def me() -> Raw:
    return _asked("/api/me")


def signout() -> Raw:
    return _asked("/api/signout")


def drop_key(key: str) -> Raw:
    """Deprecated: whatever key is named, Ollama signs out with its own (routes.go:1895)."""
    del key
    return _asked("/api/signout")


def _asked(target: str) -> Raw:
    body = read_short_body()
    call = Call("POST", target, body, tuple(request.headers.items()), origin())
    return passed(runtime().account.ask(call, GunicornClient(request.environ)))
