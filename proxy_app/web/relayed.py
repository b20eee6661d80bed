"""One view for all inference routes: read, route, relay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import g, request

from proxy_app.dialects.body import Asked, asked, is_blank
from proxy_app.dialects.inference import InferenceRoute
from proxy_app.domain import Buffer
from proxy_app.errors import BadRequest
from proxy_app.services.relayed import Answer
from proxy_app.upstream.aside import Aside
from proxy_app.upstream.body import Body
from proxy_app.upstream.client import Call
from proxy_app.upstream.headers import Origin
from proxy_app.web.bodies import decoded, read_body
from proxy_app.web.hangup import GunicornClient
from proxy_app.web.heartbeat import beat_of, beating
from proxy_app.web.respond import Raw, runtime


def relayed(route: InferenceRoute) -> Callable[[], Raw]:
    """The view of one inference route."""

    def view() -> Raw:
        services = runtime()
        body = read_body(services.bodies)
        try:
            buffer = body.buffer()
            ask = _read(route, buffer)
            search = _searching(route, body, _call(route, buffer), ask)
        except BaseException:
            body.close()
            raise
        beat = beat_of(route, ask.stream) if services.settings.heartbeat_s else None
        return passed(search() if beat is None else beating(Aside(search), beat, services.settings.heartbeat_s))

    return view


def _searching(route: InferenceRoute, body: Body, call: Call, ask: Asked) -> Callable[[], Answer]:
    """What finds an answer; the body is not needed any more once there is one."""
    relay, client = runtime().relay, GunicornClient(request.environ)

    def search() -> Answer:
        with body:
            return relay.answer(route, call, ask.model, client)

    return search


def origin() -> Origin:
    """Who asks, as a backend may know it."""
    environ = request.environ
    address = environ.get("REMOTE_ADDR", "")
    return Origin(g.request_id, runtime().settings.via, address, environ.get("wsgi.url_scheme", ""))


def _call(route: InferenceRoute, body: Buffer) -> Call:
    headers = request.headers.items()
    if runtime().settings.heartbeat_s:
        # An answer behind a heartbeat has to be of the kind that was begun.
        headers = [(name, value) for name, value in headers if name.lower() != "accept-encoding"]
    return Call("POST", route.path + query_as_sent(request.environ), body, tuple(headers), origin())


def query_as_sent(environ: Mapping[str, Any]) -> str:
    """The query with its question mark, byte for byte (RFC 9110 §7.7)."""
    _, mark, query = environ.get("RAW_URI", "").partition("?")
    return str(mark + query.partition("#")[0])


def _read(route: InferenceRoute, body: Buffer) -> Asked:
    """What the request asks for, in the words of its route where it asks for nothing.

    Raises:
        BadRequest: it cannot be read.
    """
    environ = request.environ
    content_type = environ.get("CONTENT_TYPE", "")
    if route.needs_multipart and not content_type.lower().startswith("multipart/form-data"):
        raise BadRequest("failed to parse multipart form: request Content-Type isn't multipart/form-data")
    if route.takes_zstd and (encoding := environ.get("HTTP_CONTENT_ENCODING")):
        body = decoded(body, encoding, runtime().bodies)
    if is_blank(body):
        raise BadRequest(route.empty_body)
    return asked(body, content_type, environ.get("QUERY_STRING", "")) if route.no_cloud is None else Asked()


def passed(answer: Answer) -> Raw:
    """A service's answer as it goes to the client."""
    response = Raw(answer.body, f"{answer.status} {answer.reason}".rstrip(), answer.headers)
    # Not in the iterator's `finally`: of an answer to HEAD, or to a client that left, no piece is ever asked for.
    response.call_on_close(answer.close)
    return response
