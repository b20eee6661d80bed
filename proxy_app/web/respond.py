"""Answers of all views: bytes that go out as they are, and errors in the dialect of their route."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import cast

from flask import Flask, Request, Response, current_app, g, render_template, request
from werkzeug.exceptions import HTTPException

from proxy_app.dialects.errors import JSON, Dialect, error_body
from proxy_app.domain import Listing
from proxy_app.errors import Cancelled, CloudDisabled, Limited, RegistryAway, RequestError, Unauthorized, Unavailable
from proxy_app.services.runtime import Runtime

Pairs = Iterable[tuple[str, str]]


class Raw(Response):
    """Nothing is added to what a view says: no guessed type, no charset."""

    default_mimetype = None

    def __init__(self, body: bytes | Iterable[bytes], status: int | str = 200, headers: Pairs = ()) -> None:
        # Werkzeug shouts its phrases; Go, and so Ollama, does not.
        line = f"{status} {HTTPStatus(status).phrase}" if isinstance(status, int) else status
        super().__init__(body, status=line, headers=list(headers), direct_passthrough=not isinstance(body, bytes))


def runtime() -> Runtime:
    return cast(Runtime, current_app.extensions["proxy"])


def json_answer(body: bytes, status: int = 200, headers: Pairs = ()) -> Raw:
    return Raw(body, status, [("Content-Type", JSON), ("Content-Length", str(len(body))), *headers])


def text_answer(body: bytes, status: int = 200, headers: Pairs = ()) -> Raw:
    return Raw(body, status, [("Content-Type", "text/plain"), ("Content-Length", str(len(body))), *headers])


def from_memory() -> list[tuple[str, str]]:
    """The headers of an answer that comes from the Fleet; Age grows only while nobody refreshes it."""
    return [("X-Caravan-Cache", "hit"), ("Age", str(runtime().reloader.age_s)), *private()]


def private() -> list[tuple[str, str]]:
    """Where there are keys, an answer is for the one who asked: no cache in between may give it to another."""
    return [] if g.caller.sees_all else [("Cache-Control", "private, no-cache"), ("Vary", "Authorization, X-Api-Key")]


def listing_answer(listing: Listing, asked: Request, content_type: str = JSON) -> Raw:
    """A finished listing, or 304 where the client has it already (RFC 9110 §13.1.2)."""
    headers = [("ETag", listing.etag), *from_memory()]
    if g.caller.sees_all:
        headers.append(("Cache-Control", "no-cache"))
    if asked.headers.get("If-None-Match") and asked.if_none_match.contains_weak(listing.etag.strip('"')):
        return Raw(b"", 304, headers)
    body = listing.body
    return Raw(body, 200, [("Content-Type", content_type), ("Content-Length", str(len(body))), *headers])


def error_answer(error: RequestError, dialect: Dialect) -> Raw:
    """An error that Caravan raises itself: the one place where they get their form."""
    # Ollama answers this one in its own form on every route (measured: v1_chat_cloud_disabled_403).
    form: Dialect = "ollama" if isinstance(error, CloudDisabled) else dialect
    headers = []
    if isinstance(error, (Unavailable, Limited)):
        headers.append(("Retry-After", str(error.retry_after_s)))
    if isinstance(error, (Limited, Cancelled)):
        headers += error.headers
    if isinstance(error, Unauthorized):
        headers.append(("WWW-Authenticate", 'Bearer realm="caravan"'))
    return _rendered(form, error.status, error.message, headers)


def _rendered(dialect: Dialect, status: int, message: str, headers: Pairs = ()) -> Raw:
    """In the dialect of the route's clients; as a page or plain text for a person who asks for that."""
    wanted = _wanted()
    if wanted == "text/html":
        return _page(status, message, headers)
    if wanted == "text/plain":
        return text_answer(f"{message}\n".encode(), status, headers)
    return json_answer(error_body(dialect, status, message, g.get("request_id", "")), status, headers)


def _wanted() -> str:
    """What kind of text the client prefers; JSON unless it says so."""
    if "text/" not in request.environ.get("HTTP_ACCEPT", ""):
        return "application/json"
    kinds = ("application/json", "text/html", "text/plain")
    return request.accept_mimetypes.best_match(kinds, "application/json") or "application/json"


def _page(status: int, message: str, headers: Pairs) -> Raw:
    phrase = HTTPStatus(status).phrase
    about = {"status": status, "phrase": phrase, "message": message, "request_id": g.get("request_id", "")}
    body = render_template("error.html", **about).encode()
    own = [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"),
        ("X-Content-Type-Options", "nosniff"),
        ("Cache-Control", "no-store"),
    ]
    return Raw(body, status, [*own, *headers])


def dialect_of(path: str) -> Dialect:
    """The dialect of a path's clients, where no route is known."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "ollama"


def register_errors(app: Flask) -> None:
    """Render what is raised outside of a route; a bug is a 500 in the dialect, with its traceback in the log alone."""

    @app.errorhandler(RequestError)
    def refused(error: RequestError) -> Raw:
        return error_answer(error, dialect_of(request.path))

    @app.errorhandler(RegistryAway)
    def without_registry(error: RegistryAway) -> Raw:
        """What operators see and change is there; it is locked for a moment, or its disk is full."""
        current_app.logger.warning("%s %s: %s", request.method, request.path, error)
        told = Unavailable("the registry cannot be used now: try again, and look into the log if it stays so", 1)
        return error_answer(told, dialect_of(request.path))

    @app.errorhandler(HTTPException)
    def refused_by_the_framework(error: HTTPException) -> Raw:
        """What Werkzeug refuses before a view is reached, such as a Host that is none."""
        return _rendered(dialect_of(request.path), error.code or 400, error.name)

    @app.errorhandler(Exception)
    def broken(error: Exception) -> Raw:
        current_app.logger.exception("a bug: %s %s", request.method, request.path)
        return _rendered(dialect_of(request.path), 500, "Caravan failed; its log says why")
