"""The JSON API of the admin pages: each endpoint is a row that says what it takes and gives.

The rows make the routes, the checks of what comes in, and the OpenAPI document.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_type_hints

import msgspec
from flask import g, request
from msgspec import Meta

from proxy_app.errors import BadRequest
from proxy_app.services.admin import shapes
from proxy_app.services.admin.office import Office
from proxy_app.services.admin.shapes import Order
from proxy_app.services.relayed import Answer
from proxy_app.services.usage_report import COLUMNS, as_csv
from proxy_app.web.bodies import read_short_body
from proxy_app.web.callers import PLAIN_COOKIE, SECURE_COOKIE, check_origin, is_secure, session_token
from proxy_app.web.hangup import GunicornClient
from proxy_app.web.relayed import origin, passed
from proxy_app.web.respond import Raw, json_answer, runtime

ROOT = "/admin/api"
# A key's patterns, or a backend's headers; nothing here is longer.
LONGEST_ORDER = 256 << 10
NDJSON = "application/x-ndjson"
DAY_S = 86400.0


# -- what comes in -----------------------------------------------------------------------------------


class Login(Order, kw_only=True, frozen=True):
    """key: one with the scope `admin`."""

    key: Annotated[str, Meta(min_length=1, max_length=4096)]


class PullOrder(Order, kw_only=True, frozen=True):
    """backends: who gets the model."""

    model: shapes.Model
    backends: Annotated[list[str], Meta(min_length=1, max_length=1000)]


class CopyOrder(Order, kw_only=True, frozen=True):
    """On every backend that holds the source. replace: do so where the destination exists, too, which is lost then; a
    409 otherwise."""

    source: shapes.Model
    destination: shapes.Model
    replace: bool = False


class ModelOrder(Order, kw_only=True, frozen=True):
    """On every backend that holds it."""

    model: shapes.Model


class UnloadOrder(Order, kw_only=True, frozen=True):
    """backend: where it leaves memory."""

    model: shapes.Model
    backend: str


class LoadOrder(Order, kw_only=True, frozen=True):
    """keep_alive_s: how long it stays in memory after its last request; null: until it is unloaded."""

    model: shapes.Model
    backend: str
    keep_alive_s: Annotated[float, Meta(gt=0, le=365 * DAY_S)] | None = None


class ModelsQuery(Order, kw_only=True, frozen=True):
    """query: a part of the name. page: from 1."""

    query: Annotated[str, Meta(max_length=1024)] = ""
    page: Annotated[int, Meta(ge=1, le=1_000_000)] = 1


class EventsQuery(Order, kw_only=True, frozen=True):
    """kind: the beginning of the kinds that are meant, such as `backend`. before: an event's id."""

    kind: Annotated[str, Meta(max_length=100)] = ""
    before: Annotated[int, Meta(ge=1, le=2**53)] | None = None


class ChartsQuery(Order, kw_only=True, frozen=True):
    """span_s: how far back, an hour to 30 days."""

    span_s: Annotated[float, Meta(ge=3600, le=30 * DAY_S)] = 3600.0


class UsageQuery(Order, kw_only=True, frozen=True):
    """since_s: how far back, in seconds. by: what is counted apart."""

    since_s: Annotated[float, Meta(gt=0, le=3650 * DAY_S)] = 30 * DAY_S
    by: Annotated[list[Literal["key", "model", "backend", "hour"]], Meta(min_length=1, max_length=4)] = msgspec.field(
        default_factory=lambda: ["key", "model"]
    )


# -- what is done ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One row.

    Args:
        do: is given the office, then what `takes` or `query` made of the request, then the parts of the path.
        gives: the shape of the answer; None: it has no body, or one of its own kind.
        kind: the content type of an answer of its own kind.
        scope: `open` where nobody has to be logged in.
    """

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    do: Callable[..., Any]
    about: str
    gives: type[msgspec.Struct] | None = None
    takes: type[Order] | None = None
    query: type[Order] | None = None
    status: int = 200
    kind: str = "application/json"
    scope: Literal["admin", "open"] = "admin"


def view(endpoint: Endpoint) -> Callable[..., Raw]:
    """The view of one endpoint."""

    def do(**parts: str) -> Raw:
        given: list[Any] = []
        if endpoint.takes is not None:
            given.append(_order(endpoint.takes))
        if endpoint.query is not None:
            given.append(_query(endpoint.query))
        answer = endpoint.do(runtime().admin, *given, **parts)
        if isinstance(answer, Raw):
            return answer
        if answer is None:
            return Raw(b"", 204)
        return json_answer(msgspec.json.encode(answer), endpoint.status)

    return do


def _order(shape: type[Order]) -> Order:
    """What the body says. Raises: BadRequest."""
    try:
        return msgspec.json.decode(read_short_body(), type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as exc:
        raise BadRequest(f"the request makes no sense: {exc}") from None


def _query(shape: type[Order]) -> Order:
    """What the query string says; a list is a name that stands several times. Raises: BadRequest."""
    hints = get_type_hints(shape)
    given = {name: values if "list" in str(hints.get(name)) else values[-1] for name, values in request.args.lists()}
    try:
        return msgspec.convert(given, shape, strict=False)
    except msgspec.ValidationError as exc:
        raise BadRequest(f"the query makes no sense: {exc}") from None


def _backends(office: Office) -> shapes.FleetView:
    return office.fleet()


def _add(office: Office, order: shapes.NewBackend) -> shapes.BackendView:
    return office.fleet_desk.backend(office.backends.add(order, g.caller.key_id))


def _test(office: Office, order: shapes.NewBackend) -> shapes.Tested:
    return office.backends.test(order)


def _change(office: Office, order: shapes.BackendChange, name: str) -> shapes.BackendView:
    return office.fleet_desk.backend(office.backends.change(name, order, g.caller.key_id))


def _remove(office: Office, name: str) -> None:
    office.backends.remove(name, g.caller.key_id)


def _models(office: Office, query: ModelsQuery) -> shapes.ModelsView:
    return office.models(query.query, query.page)


def _pull(office: Office, order: PullOrder) -> Raw:
    client = GunicornClient(request.environ)
    return passed(office.model_desk.pull(order.model, order.backends, origin(), client, g.caller))


def _copy(office: Office, order: CopyOrder) -> Raw | None:
    if not order.replace:
        office.model_desk.check_free(order.destination)
    client = GunicornClient(request.environ)
    return _done(office.model_desk.copy(order.source, order.destination, origin(), client, g.caller))


def _delete(office: Office, order: ModelOrder) -> Raw | None:
    return _done(office.model_desk.delete(order.model, origin(), GunicornClient(request.environ), g.caller))


def _load(office: Office, order: LoadOrder) -> None:
    office.model_desk.load(order.model, order.backend, order.keep_alive_s, origin(), g.caller)


def _unload(office: Office, order: UnloadOrder) -> None:
    office.model_desk.unload(order.model, order.backend, origin(), g.caller)


def _done(answer: Answer) -> Raw | None:
    """Ollama's answer where something went wrong; nothing where it went well."""
    if answer.status >= 300:
        return passed(answer)
    answer.close()
    return None


def _requests(office: Office) -> shapes.TrafficView:
    return office.traffic()


def _cancel(office: Office, run_id: str) -> None:
    office.cancel(run_id, g.caller.key_id)


def _charts(office: Office, query: ChartsQuery) -> shapes.ChartView:
    return office.chart(query.span_s)


def _keys(office: Office) -> shapes.KeysView:
    return office.keys()


def _key(office: Office, key_id: str) -> shapes.KeyView:
    return office.key_desk.one(key_id)


def _create_key(office: Office, order: shapes.NewKey) -> shapes.MadeKey:
    return office.key_desk.create(order, g.caller)


def _change_key(office: Office, order: shapes.KeyChange, key_id: str) -> shapes.KeyView:
    return office.key_desk.change(key_id, order, g.caller)


def _revoke(office: Office, key_id: str) -> shapes.KeyView:
    return office.key_desk.revoke(key_id, g.caller)


def _rotate(office: Office, order: shapes.Rotation, key_id: str) -> shapes.MadeKey:
    return office.key_desk.rotate(key_id, order, g.caller)


def _events(office: Office, query: EventsQuery) -> shapes.EventsView:
    return office.events(query.kind, query.before)


def _settings(office: Office) -> shapes.SettingsView:
    return office.settings()


def _usage(office: Office, query: UsageQuery) -> shapes.UsageView:
    return office.usage(query.since_s, query.by)


def _usage_csv(office: Office, query: UsageQuery) -> Raw:
    found = office.usage(query.since_s, query.by)
    rows = [{**_harmless(row.parts), **{name: getattr(row, name) for name in COLUMNS}} for row in found.rows]
    body = as_csv(rows, found.by).encode()
    headers = [
        ("Content-Type", "text/csv; charset=utf-8"),
        ("Content-Disposition", 'attachment; filename="usage.csv"'),
        ("Content-Length", str(len(body))),
    ]
    return Raw(body, 200, headers)


def _harmless(parts: dict[str, str]) -> dict[str, str]:
    """Without what a spreadsheet would take for a formula (OWASP, CSV injection)."""
    return {name: f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text for name, text in parts.items()}


def _login(office: Office, order: Login) -> Raw:
    check_origin(request.environ, needs_proof=False)
    token = office.sessions.login(order.key, request.environ.get("REMOTE_ADDR", ""))
    return Raw(b"", 204, [("Set-Cookie", _cookie(token, office.server.session_s))])


def _logout(office: Office) -> Raw:
    # The cookie's, though a key beside it may be what let the request in.
    if token := session_token():
        office.sessions.logout(token)
    return Raw(b"", 204, [("Set-Cookie", _cookie("", 0))])


def _logout_all(office: Office) -> Raw:
    count = office.sessions.logout_all()
    office.event_book.note("session.ended", g.caller.key_id, "everybody", f"{count} logins were ended", "warning")
    return Raw(b"", 204, [("Set-Cookie", _cookie("", 0))])


def _cookie(token: str, lives_s: int) -> str:
    name, secure = (SECURE_COOKIE, "; Secure") if is_secure() else (PLAIN_COOKIE, "")
    return f"{name}={token}; Path=/; HttpOnly; SameSite=Strict; Max-Age={lives_s}{secure}"


ENDPOINTS = (
    Endpoint("GET", "/backends", _backends, "All backends, and what is odd about the fleet.", shapes.FleetView),
    Endpoint("POST", "/backends", _add, "Add a backend.", shapes.BackendView, takes=shapes.NewBackend, status=201),
    Endpoint("POST", "/backends/test", _test, "Ask a backend, without adding it.", shapes.Tested, shapes.NewBackend),
    Endpoint(
        "PATCH", "/backends/<name>", _change, "Change or drain a backend.", shapes.BackendView, shapes.BackendChange
    ),
    Endpoint("DELETE", "/backends/<name>", _remove, "Remove a backend that an operator added.", status=204),
    Endpoint("GET", "/models", _models, "The models of all backends.", shapes.ModelsView, query=ModelsQuery),
    Endpoint(
        "POST", "/models/pull", _pull, "Pull a model: its progress, as Ollama tells it.", takes=PullOrder, kind=NDJSON
    ),
    Endpoint("POST", "/models/copy", _copy, "Copy a model wherever it is.", takes=CopyOrder, status=204),
    Endpoint("POST", "/models/delete", _delete, "Delete a model everywhere.", takes=ModelOrder, status=204),
    Endpoint("POST", "/models/load", _load, "Load a model into a backend's memory.", takes=LoadOrder, status=204),
    Endpoint("POST", "/models/unload", _unload, "Take a model out of memory.", takes=UnloadOrder, status=204),
    Endpoint("GET", "/requests", _requests, "What runs now, and what has ended.", shapes.TrafficView),
    Endpoint("DELETE", "/requests/<run_id>", _cancel, "End a running request.", status=204),
    Endpoint("GET", "/charts", _charts, "The traffic of a time, in steps.", shapes.ChartView, query=ChartsQuery),
    Endpoint("GET", "/keys", _keys, "All keys, without their secrets.", shapes.KeysView),
    Endpoint("POST", "/keys", _create_key, "Make a key.", shapes.MadeKey, takes=shapes.NewKey, status=201),
    Endpoint("GET", "/keys/<key_id>", _key, "One key.", shapes.KeyView),
    Endpoint("PATCH", "/keys/<key_id>", _change_key, "Change a key.", shapes.KeyView, shapes.KeyChange),
    Endpoint("DELETE", "/keys/<key_id>", _revoke, "Revoke a key.", shapes.KeyView),
    Endpoint(
        "POST",
        "/keys/<key_id>/rotate",
        _rotate,
        "Make a key that takes the place of another one.",
        shapes.MadeKey,
        takes=shapes.Rotation,
        status=201,
    ),
    Endpoint("GET", "/events", _events, "What changed, newest first.", shapes.EventsView, query=EventsQuery),
    Endpoint("GET", "/settings", _settings, "All settings, and where each came from.", shapes.SettingsView),
    Endpoint("GET", "/usage", _usage, "What was used.", shapes.UsageView, query=UsageQuery),
    Endpoint("GET", "/usage.csv", _usage_csv, "The same as a table.", query=UsageQuery, kind="text/csv"),
    Endpoint("POST", "/session", _login, "Log in with a key.", takes=Login, status=204, scope="open"),
    Endpoint("DELETE", "/session", _logout, "Log out.", status=204),
    Endpoint("DELETE", "/sessions", _logout_all, "Log everybody out.", status=204),
)
