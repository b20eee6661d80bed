"""The application: blueprints, guards, and the runtime that serves them."""

from __future__ import annotations

import logging
import re
from http import HTTPStatus

from flask import Flask, Response, g, request
from werkzeug.exceptions import MethodNotAllowed, NotFound

from proxy_app import telemetry
from proxy_app.dialects import ollama
from proxy_app.services.runtime import Runtime
from proxy_app.settings import Settings, load
from proxy_app.web import anthropic, chat, guards, openai, ops, show, tags
from proxy_app.web.respond import Raw, register_errors, text_answer

log = logging.getLogger(__name__)

_SLASHES = re.compile("/+")

# Ollama answers HEAD on these alone (measured: v1_models_head_405).
_WITH_HEAD = {"/", "/api/version", "/api/tags"}
_BLUEPRINTS = (tags.blueprint, show.blueprint, chat.blueprint, openai.blueprint, anthropic.blueprint, ops.blueprint)


def build(settings: Settings | None = None) -> Flask:
    """Build the application of one worker process.

    Raises:
        ConfigError: with all problems of the settings.
    """
    settings = settings or load()
    telemetry.configure(settings.log_level)
    app = Flask("proxy_app", static_folder=None)
    app.config["PROVIDE_AUTOMATIC_OPTIONS"] = False
    app.url_map.merge_slashes = False
    app.url_map.strict_slashes = True
    for blueprint in _BLUEPRINTS:
        app.register_blueprint(blueprint)
    _register_guards(app, settings)
    _register_signature(app)
    _register_misses(app)
    register_errors(app)
    app.extensions["proxy"] = Runtime.build(settings)
    return app


def _register_guards(app: Flask, settings: Settings) -> None:
    host_allowed = guards.host_guard(settings.hosts)
    origin_allowed = guards.origin_guard(settings.origins)
    checks_host = not settings.is_public

    @app.before_request
    def guard() -> Raw | None:
        environ = request.environ
        g.request_id = guards.request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        host = environ.get("HTTP_HOST", "")
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not origin_allowed(origin, host):
            return Raw(b"", 403)
        if origin is not None and environ["REQUEST_METHOD"] == "OPTIONS":
            return Raw(b"", 204, guards.PREFLIGHT_HEADERS)
        if checks_host and not host_allowed(host):
            return Raw(b"", 403)
        if "//" in environ["PATH_INFO"]:
            # Werkzeug itself would look past leading slashes.
            raise NotFound
        if environ["REQUEST_METHOD"] == "HEAD" and request.path not in _WITH_HEAD:
            raise MethodNotAllowed(valid_methods=["GET"])
        return None


def _register_signature(app: Flask) -> None:
    """What every answer carries."""

    @app.after_request
    def sign(response: Response) -> Response:
        response.headers["X-Request-Id"] = g.request_id
        origin = request.environ.get("HTTP_ORIGIN")
        if origin is not None and response.status_code != 403:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Vary"] = "Origin"
        return response


def _register_misses(app: Flask) -> None:
    """Ollama's own words for what is not there, and its redirects for slashes too many."""
    known = {rule.rule for rule in app.url_map.iter_rules()}

    @app.errorhandler(NotFound)
    def not_found(_: NotFound) -> Raw:
        path = request.environ["PATH_INFO"]
        clean = _SLASHES.sub("/", path).rstrip("/")
        if clean != path and clean in known:
            return _redirect(clean, 307 if "//" in path or request.method != "GET" else 301)
        return text_answer(ollama.NOT_FOUND, 404)

    @app.errorhandler(MethodNotAllowed)
    def not_allowed(error: MethodNotAllowed) -> Raw:
        methods = sorted(error.valid_methods or (), reverse=True)
        return text_answer(ollama.METHOD_NOT_ALLOWED, 405, [("Allow", ", ".join(_as_ollama(methods, request.path)))])


def _redirect(path: str, status: int) -> Raw:
    """A redirect as Go writes it; the path is one of our own, so nothing of the client's is echoed."""
    body = f'<a href="{path}">{HTTPStatus(status).phrase}</a>.\n\n'.encode()
    headers = [("Content-Type", "text/html; charset=utf-8"), ("Location", path), ("Content-Length", str(len(body)))]
    return Raw(body, status, headers)


def _as_ollama(methods: list[str], path: str) -> list[str]:
    return [method for method in methods if method != "HEAD" or path in _WITH_HEAD]
