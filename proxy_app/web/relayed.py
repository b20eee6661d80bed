"""One view for all inference routes: read, route, relay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from flask import g, request

from proxy_app.dialects.body import Asked, asked, is_blank
from proxy_app.dialects.bounds import Bounds, bounded, stated_length
from proxy_app.dialects.inference import InferenceRoute
from proxy_app.dialects.unload import is_unload
from proxy_app.dialects.usage import with_usage
from proxy_app.domain import Buffer
from proxy_app.errors import BadRequest, BodyTooLarge
from proxy_app.services.relay import Relay
from proxy_app.services.relayed import Answer
from proxy_app.services.search import Asking
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
            asking = _asking(route, buffer, ask)
            search = partial(_answered, services.relay, asking, ask.model, body)
        except BaseException:
            body.close()
            raise
        beat = beat_of(route, ask.stream) if services.settings.heartbeat_s else None
        return passed(search() if beat is None else beating(Aside(search), beat, services.settings.heartbeat_s))

    return view


def _answered(relay: Relay, asking: Asking, model: str, body: Body) -> Answer:
    """Find an answer; the body is not needed any more once there is one."""
    with body:
        return relay.answer(asking, model)


def _asking(route: InferenceRoute, body: Buffer, ask: Asked) -> Asking:
    """What is asked, by whom; an OpenAI chat that streams says what it cost only where it is asked to."""
    body = _bounded(route, body)
    is_counted = g.caller.key_id or g.caller.limits.counts_work
    counts = is_counted and ask.stream and route.path in ("/v1/chat/completions", "/v1/completions")
    more = with_usage(body) if counts and not _is_packed() else None
    call = _call(route, body if more is None else more)
    length = stated_length(body, route.dialect) if g.caller.limits.counts_work else None
    unloads = is_unload(body, route.path)
    client = GunicornClient(request.environ)
    return Asking(route, call, client, g.caller, length, unloads, hides_usage=more is not None)


def _bounded(route: InferenceRoute, body: Buffer) -> Buffer:
    """The body as the caller's key may send it.

    Raises:
        BodyTooLarge, BadRequest: it may not.
    """
    limits = g.caller.limits
    if limits.body is not None and len(body) > limits.body:
        raise BodyTooLarge(f"this key may send {limits.body} bytes with a request")
    length = limits.num_predict if route.answers_at_length else None
    refuses = runtime().settings.limit_excess == "refuse"
    bounds = Bounds(limits.num_ctx, length, limits.images, limits.keep_alive, refuses)
    if bounds.is_nothing or route.needs_multipart:
        return body
    if _is_packed():
        raise BadRequest("this key has limits that a compressed body cannot be held to: send it as it is")
    return bounded(body, route.dialect, bounds) or body


def _is_packed() -> bool:
    return str(request.environ.get("HTTP_CONTENT_ENCODING", "identity")).strip().lower() != "identity"


def origin() -> Origin:
    """Who asks, as a backend may know it."""
    environ = request.environ
    address = environ.get("REMOTE_ADDR", "")
    return Origin(g.request_id, runtime().settings.via, address, environ.get("wsgi.url_scheme", ""))


def _call(route: InferenceRoute, body: Buffer) -> Call:
    headers = request.headers.items()
    if runtime().settings.heartbeat_s or g.caller.limits.counts_work:
        # An answer behind a heartbeat has to be of the kind that was begun; what one costs has to be readable.
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
    if _is_packed() and not route.needs_multipart:
        # What is packed is no form, whatever its bytes look like: who unpacks it reads something else.
        content_type = ""
    if route.takes_zstd and (encoding := environ.get("HTTP_CONTENT_ENCODING")):
        body = decoded(body, encoding, runtime().bodies)
    if is_blank(body):
        raise BadRequest(route.empty_body)
    if route.no_cloud is not None:
        return Asked()
    return asked(body, content_type, environ.get("QUERY_STRING", ""), is_form=route.needs_multipart)


def passed(answer: Answer) -> Raw:
    """A service's answer as it goes to the client."""
    response = Raw(answer.body, f"{answer.status} {answer.reason}".rstrip(), answer.headers)
    # Not in the iterator's `finally`: of an answer to HEAD, or to a client that left, no piece is ever asked for.
    response.call_on_close(answer.close)
    return response
