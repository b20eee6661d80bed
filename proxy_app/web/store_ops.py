"""Routes that change what the backends hold."""

from __future__ import annotations

from flask import g, request

from proxy_app.upstream.client import Call
from proxy_app.web.bodies import announced_length, pieces, read_short_body
from proxy_app.web.connection import close_after_answer
from proxy_app.web.hangup import GunicornClient
from proxy_app.web.relayed import origin, passed
from proxy_app.web.respond import Raw, runtime


def pull() -> Raw:
    return passed(runtime().store.pull(_call(), GunicornClient(request.environ), g.caller))


def push() -> Raw:
    return passed(runtime().store.push(_call(), GunicornClient(request.environ), g.caller))


def create() -> Raw:
    return passed(runtime().store.create(_call(), GunicornClient(request.environ), g.caller))


def copy() -> Raw:
    return passed(runtime().store.copy(_call(), GunicornClient(request.environ), g.caller))


def delete() -> Raw:
    return passed(runtime().store.delete(_call(), GunicornClient(request.environ), g.caller))


def find_blob(digest: str) -> Raw:
    call = Call("HEAD", f"/api/blobs/{digest}", b"", tuple(request.headers.items()), origin())
    return passed(runtime().store.find_blob(digest, call, GunicornClient(request.environ)))


def upload(digest: str) -> Raw:
    """The body is never held: it goes on while it comes."""
    environ = request.environ
    headers = tuple(request.headers.items())
    body = pieces(environ, None)
    call = Call("POST", f"/api/blobs/{digest}", body, headers, origin(), announced_length(environ))
    answer, was_read = runtime().store.upload(digest, call, GunicornClient(environ))
    if not was_read:
        close_after_answer()
    return passed(answer)


def _call() -> Call:
    return Call(request.method, request.path, read_short_body(), tuple(request.headers.items()), origin())
