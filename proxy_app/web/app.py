"""The application: blueprints, guards, and the runtime that serves them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from flask import Blueprint, Flask, Response, g, request
from markupsafe import escape
from werkzeug.exceptions import MethodNotAllowed, NotFound
from werkzeug.middleware.proxy_fix import ProxyFix

from proxy_app import telemetry
from proxy_app.dialects import ollama
from proxy_app.errors import Missing
from proxy_app.services.relayed import LOGGED_NAME
from proxy_app.services.runtime import Runtime
from proxy_app.settings import Settings, load
from proxy_app.web import admin_api, guards
from proxy_app.web.admin_headers import protect
from proxy_app.web.bodies import has_body
from proxy_app.web.connection import close_after_answer
from proxy_app.web.keypath import masked, take_key_from_path
from proxy_app.web.relayed import query_as_sent
from proxy_app.web.respond import Raw, error_answer, register_errors, text_answer
from proxy_app.web.routes import TABLE

log = logging.getLogger(__name__)

_SLASHES = re.compile("/+")

# Ollama answers HEAD where its table says so, and nowhere else (measured: v1_models_head_405).
_WITH_HEAD = {route.path for route in TABLE if "HEAD" in route.methods}


class _App(Flask):
    """Flask without what Werkzeug does before any guard is asked."""

    def wsgi_app(self, environ: dict[str, Any], start_response: Any) -> Any:
        # A WebSocket that nobody offers is no error: the request is answered as if it had not been asked for
        # (RFC 9110 §7.8). An absolute target without a path means "/".
        environ.pop("HTTP_UPGRADE", None)
        environ["PATH_INFO"] = environ["PATH_INFO"] or "/"
        if self.config["KEY_IN_PATH"]:
            take_key_from_path(environ)
        return super().wsgi_app(environ, start_response)


def build(settings: Settings | None = None) -> Flask:
    """Build the application of one worker process.

    Raises:
        ConfigError: with all problems of the settings.
    """
    settings = settings or load()
    telemetry.configure(settings.log_level)
    app = _App("proxy_app", static_folder=None, template_folder="web/templates")
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.config["KEY_IN_PATH"] = settings.key_in_path
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    _register_routes(app, settings)
    app.before_request(guards.first(settings))
    _register_signature(app)
    _register_misses(app)
    register_errors(app)
    if settings.trusted_hops:
        hops = settings.trusted_hops
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=hops, x_proto=hops, x_host=hops)  # type: ignore[method-assign]
    app.extensions["proxy"] = Runtime.build(settings)
    return app


def _register_routes(app: Flask, settings: Settings) -> None:
    blueprints = {route.blueprint: Blueprint(route.blueprint, __name__) for route in TABLE}
    for route in TABLE:
        view = guards.guarded(route, settings)
        blueprints[route.blueprint].add_url_rule(route.path, route.endpoint, view, methods=list(route.methods))
    for blueprint in blueprints.values():
        app.register_blueprint(blueprint)


def _register_signature(app: Flask) -> None:
    """What every answer carries, and the log line of those that write none of their own."""

    @app.after_request
    def sign(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        if has_body(request.environ) and not g.get("body_read"):
            # What is left of it would be taken for the next request, or answered a second time.
            close_after_answer()
        origin, is_admin = request.environ.get("HTTP_ORIGIN"), request.path.startswith("/admin")
        if is_admin:
            # Pages of other origins have no business here, whichever may chat.
            protect(response)
        elif origin is not None and g.get("origin_allowed"):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers.add("Vary", "Origin")
        if log.isEnabledFor(logging.DEBUG):
            fields = {"request_id": g.request_id, "method": request.method, "path": masked(request.path)[:LOGGED_NAME]}
            log.debug("answered", extra={"fields": fields | {"status": response.status_code}})
        return response


def _register_misses(app: Flask) -> None:
    """Ollama's own words for what is not there, and its redirects for slashes too many."""
    known = {rule.rule for rule in app.url_map.iter_rules()}

    @app.errorhandler(NotFound)
    def not_found(_: NotFound) -> Raw:
        path = request.environ["PATH_INFO"]
        clean = _SLASHES.sub("/", path).rstrip("/")
        as_sent = request.environ.get("RAW_URI", "").partition("?")[0]
        if clean != path and clean in known and "%" not in as_sent:
            target = request.environ.get("caravan.prefix", "") + clean + query_as_sent(request.environ)
            return _redirect(target, 307 if "//" in path or request.method != "GET" else 301)
        if path.startswith(f"{admin_api.ROOT}/"):
            # Its OpenAPI document says that every refusal is JSON.
            return error_answer(Missing("there is nothing of that name"), "ollama")
        return text_answer(ollama.NOT_FOUND, 404)

    @app.errorhandler(MethodNotAllowed)
    def not_allowed(error: MethodNotAllowed) -> Raw:
        allowed = _as_ollama(error.valid_methods or (), request.path)
        return text_answer(ollama.METHOD_NOT_ALLOWED, 405, [("Allow", ", ".join(allowed))])


def _redirect(target: str, status: int) -> Raw:
    """A redirect as Go writes it; the path is one of our own, the query the client's."""
    body = f'<a href="{escape(target)}">{HTTPStatus(status).phrase}</a>.\n\n'.encode()
    headers = [("Content-Type", "text/html; charset=utf-8"), ("Location", target), ("Content-Length", str(len(body)))]
    return Raw(body, status, headers)


def _as_ollama(methods: Iterable[str], path: str) -> list[str]:
    """What `Allow` lists, in the order in which Ollama registers its routes."""
    has_head = path in _WITH_HEAD or path.startswith("/api/blobs/")
    order = ("HEAD", "GET", "POST", "DELETE") if has_head else ("GET", "POST", "PATCH", "DELETE")
    return [method for method in order if method in methods]
