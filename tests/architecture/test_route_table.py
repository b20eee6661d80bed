"""The route table: all that is served stands in it with its guards, and it is Ollama's."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import pytest
from flask import Flask

from proxy_app import create_app
from proxy_app.dialects.errors import Dialect
from proxy_app.domain import Scope
from proxy_app.settings import load
from proxy_app.web.guards import FROM_SETTING, NO_BODY, UNLIMITED, Route
from proxy_app.web.routes import TABLE

# Ollama server/routes.go:1841-1929 (v0.33.0-rc2): path, methods.
OLLAMA = {
    "/": "HEAD GET",
    "/api/version": "HEAD GET",
    "/api/status": "GET",
    "/api/pull": "POST",
    "/api/push": "POST",
    "/api/tags": "HEAD GET",
    "/api/show": "POST",
    "/api/delete": "DELETE",
    "/api/me": "POST",
    "/api/signout": "POST",
    "/api/user/keys/<>": "DELETE",
    "/api/create": "POST",
    "/api/blobs/<>": "HEAD POST",
    "/api/copy": "POST",
    "/api/experimental/web_search": "POST",
    "/api/experimental/web_fetch": "POST",
    "/api/experimental/model-recommendations": "GET",
    "/api/ps": "GET",
    "/api/generate": "POST",
    "/api/chat": "POST",
    "/api/embed": "POST",
    "/api/embeddings": "POST",
    "/v1/chat/completions": "POST",
    "/v1/completions": "POST",
    "/v1/embeddings": "POST",
    "/v1/models": "GET",
    "/v1/models/<>": "GET",
    "/v1/responses": "POST",
    "/v1/audio/transcriptions": "POST",
    "/v1/messages": "POST",
}
OWN = {"/livez": "GET", "/readyz": "GET"}
MIB = 1 << 20


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Flask]:
    settings = load({"DATA_DIR": str(tmp_path / "data"), "CARAVAN_POLL_INTERVAL": "0"})
    made = create_app(settings)
    yield made
    made.extensions["proxy"].close()


def unguarded(app: Flask) -> list[str]:
    """The rules that are not rows of the table, or whose view has none of the guards around it."""
    rows = {(route.path, method) for route in TABLE for method in route.methods}
    found = []
    for rule in app.url_map.iter_rules():
        view = app.view_functions[rule.endpoint]
        # Werkzeug adds HEAD to GET; the guard takes it away again where the row has none.
        methods = {method for method in rule.methods or () if (rule.rule, method) in rows}
        extra = (rule.methods or set()) - methods - ({"HEAD"} if "GET" in methods else set())
        if extra or not methods or view.__qualname__ != "guarded.<locals>.view":
            found.append(f"{sorted(rule.methods or ())} {rule.rule}")
    return found


def test_every_rule_is_a_row_of_the_table_behind_its_guards(app: Flask) -> None:
    assert unguarded(app) == []
    served = {(rule.rule, method) for rule in app.url_map.iter_rules() for method in rule.methods or ()}
    rows = {(route.path, method) for route in TABLE for method in route.methods}
    assert rows <= served


def test_a_route_beside_the_table_is_found(app: Flask) -> None:
    app.add_url_rule("/debug", "debug", lambda: "all my secrets")
    assert unguarded(app) == ["['GET', 'HEAD'] /debug"]


def test_a_view_without_guards_is_found_on_a_path_of_the_table_too(app: Flask) -> None:
    app.add_url_rule("/api/tags", "bare", lambda: "all my secrets", methods=["GET"])
    assert unguarded(app) == ["['GET', 'HEAD'] /api/tags"]


def test_every_request_passes_the_first_guard_and_every_answer_is_signed(app: Flask) -> None:
    assert [each.__qualname__ for each in app.before_request_funcs[None]] == ["first.<locals>.guard"]
    assert len(app.after_request_funcs[None]) == 1
    answer = app.test_client().get("/nowhere", base_url="http://localhost")
    assert (answer.status_code, answer.data) == (404, b"404 page not found")
    assert answer.headers["X-Request-Id"]


def shape(path: str) -> str:
    return f"{path.partition('<')[0]}<>" if "<" in path else path


def methods_of(routes: Iterable[Route]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for route in routes:
        found.setdefault(shape(route.path), set()).update(route.methods)
    return found


def is_admin(route: Route) -> bool:
    return route.path.startswith("/admin")


def test_the_table_is_ollamas_and_a_few_rows_of_our_own() -> None:
    assert methods_of(route for route in TABLE if not is_admin(route)) == {
        path: set(methods.split()) for path, methods in (OLLAMA | OWN).items()
    }


def test_no_row_stands_twice() -> None:
    rows = [(shape(route.path), method) for route in TABLE for method in route.methods]
    assert len(rows) == len(set(rows))
    assert len({route.endpoint for route in TABLE}) == len(TABLE)


@pytest.mark.parametrize("route", TABLE, ids=lambda route: route.endpoint)
def test_every_row_says_who_may_what_and_how_much(route: Route) -> None:
    assert route.scope in (*get_args(Scope), "open")
    assert route.dialect in get_args(Dialect)
    assert route.methods
    assert callable(route.view)
    takes_a_body = bool({"POST", "DELETE"} & set(route.methods))
    assert (route.body != NO_BODY) is takes_a_body or is_admin(route)
    # What is read into memory has a limit; an upload is never held.
    assert route.body != UNLIMITED or route.view.__name__ == "upload"
    assert route.body in (FROM_SETTING, UNLIMITED, NO_BODY) or route.body <= MIB


LOGIN = {"POST /admin/api/session", "GET /admin/login", "GET /admin/static/<name>"}
CHANGES = {"pull", "push", "create", "copy", "delete", "blobs", "me", "signout", "user"}


def test_what_changes_backends_or_accounts_is_for_who_manages_them() -> None:
    managed = {route.path for route in TABLE if route.scope == "manage"}
    assert managed == {
        route.path for route in TABLE if route.path.startswith("/api/") and route.path.split("/")[2] in CHANGES
    }


def test_what_needs_nothing_tells_nothing() -> None:
    rows = {f"{' '.join(route.methods)} {route.path}" for route in TABLE if route.scope == "open"}
    assert rows == {"HEAD GET /", "GET /livez", "GET /readyz", *LOGIN}


def test_what_operators_see_and_do_is_for_who_has_logged_in() -> None:
    for route in TABLE:
        assert bool(route.login) is (is_admin(route) and route.scope != "open"), route.endpoint
        assert (route.scope == "admin") is bool(route.login), route.endpoint


def test_the_dialect_of_a_row_is_that_of_its_path() -> None:
    wanted = {"/v1/messages": "anthropic", "/v1/responses": "responses"}
    for route in TABLE:
        default = "openai" if route.path.startswith("/v1/") else "ollama"
        assert route.dialect == wanted.get(route.path, default), route.path


ALL_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PATHS = {path: path.replace("<>", "sha256-0") for path in OLLAMA | OWN}


@pytest.mark.parametrize("path", PATHS)
def test_other_methods_are_ollamas_405_that_names_the_right_ones(app: Flask, path: str) -> None:
    client = app.test_client()
    allowed = (OLLAMA | OWN)[path].split()
    for method in set(ALL_METHODS) - set(allowed):
        answer = client.open(PATHS[path], method=method, base_url="http://localhost")
        assert answer.status_code == 405, method
        assert answer.headers["Content-Type"] == "text/plain"
        assert set(answer.headers["Allow"].split(", ")) == set(allowed)
        assert answer.headers["X-Request-Id"]
        assert answer.data == (b"" if method == "HEAD" else b"405 method not allowed")
