"""One view for all inference routes: read, route, relay."""

from __future__ import annotations

from collections.abc import Callable

from flask import g, request

from proxy_app.dialects.body import routing_model
from proxy_app.dialects.inference import ROUTES, InferenceRoute
from proxy_app.errors import BadRequest, ClientGone, RequestError
from proxy_app.upstream.client import Call
from proxy_app.web.guards import read_body
from proxy_app.web.hangup import GunicornClient
from proxy_app.web.respond import Raw, error_answer, runtime

_BY_PATH = {route.path: route for route in ROUTES}


def relayed(path: str) -> Callable[[], Raw]:
    """The view of one inference route."""
    route = _BY_PATH[path]

    def view() -> Raw:
        try:
            return _relay(route)
        except RequestError as error:
            return error_answer(error, route.dialect)
        except ClientGone:
            # Nobody reads this; the status is nginx's word for it.
            return Raw(b"", "499 Client Closed Request")

    view.__name__ = path.strip("/").replace("/", "_")
    return view


def _relay(route: InferenceRoute) -> Raw:
    environ = request.environ
    services = runtime()
    body = read_body(environ, services.settings.max_body)
    content_type = environ.get("CONTENT_TYPE", "")
    query = environ.get("QUERY_STRING", "")
    _check_form(route, body, content_type)
    model = routing_model(body, content_type, query)
    call = Call(
        method="POST",
        target=f"{route.path}?{query}" if query else route.path,
        body=body,
        headers=tuple(request.headers.items()),
        request_id=g.request_id,
    )
    answer = services.relay.answer(route, call, model, GunicornClient(environ))
    response = Raw(answer.body, f"{answer.status} {answer.reason}".rstrip(), answer.headers)
    # Not in the iterator's `finally`: of an answer to HEAD, or to a client that left, no piece is ever asked for.
    response.call_on_close(answer.close)
    return response


def _check_form(route: InferenceRoute, body: bytes, content_type: str) -> None:
    if route.needs_multipart and not content_type.lower().startswith("multipart/form-data"):
        raise BadRequest("failed to parse multipart form: request Content-Type isn't multipart/form-data")
    if not body.strip():
        raise BadRequest(route.empty_body)
