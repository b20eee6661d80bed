"""Ollama's routes: from a recorded request to a planned answer, without any I/O."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

from conformance.fakes import compat_routes, native_routes, read_routes, store_routes
from conformance.fakes.answers import (
    Answer,
    error_answer,
    json_answer,
    middleware_error,
    redirect_answer,
    text_answer,
)
from conformance.fakes.decode import RequestError
from conformance.fakes.machine import Desk, Machine
from conformance.fakes.recorded import RecordedRequest

Handler = Callable[[Desk, RecordedRequest], Answer]
LOCAL_ORIGIN = re.compile(r"(https?://(localhost|127\.0\.0\.1|0\.0\.0\.0)(:\d+)?|(app|file|tauri)://.*)")
TABLE: dict[str, dict[str, Handler]] = {
    "/": {"HEAD": read_routes.root, "GET": read_routes.root},
    "/api/version": {"HEAD": read_routes.version, "GET": read_routes.version},
    "/api/status": {"GET": read_routes.status},
    "/api/tags": {"HEAD": read_routes.tags, "GET": read_routes.tags},
    "/api/ps": {"GET": read_routes.ps},
    "/api/show": {"POST": read_routes.show},
    "/api/generate": {"POST": native_routes.generate},
    "/api/chat": {"POST": native_routes.chat},
    "/api/embed": {"POST": native_routes.embed},
    "/api/embeddings": {"POST": native_routes.embeddings},
    "/api/pull": {"POST": store_routes.pull},
    "/api/push": {"POST": store_routes.push},
    "/api/create": {"POST": store_routes.create},
    "/api/copy": {"POST": store_routes.copy},
    "/api/delete": {"DELETE": store_routes.delete},
    "/api/me": {"POST": store_routes.account},
    "/api/experimental/web_search": {"POST": store_routes.web_search},
    "/v1/models": {"GET": read_routes.openai_models},
    "/v1/chat/completions": {"POST": compat_routes.openai_chat},
    "/v1/completions": {"POST": compat_routes.openai_completion},
    "/v1/embeddings": {"POST": compat_routes.openai_embeddings},
    "/v1/responses": {"POST": compat_routes.openai_response},
    "/v1/messages": {"POST": compat_routes.messages},
    "/v1/audio/transcriptions": {"POST": compat_routes.transcription},
}


def host_allowed(host: str) -> bool:
    """Ollama's Host check on a loopback listener."""
    name = urlsplit(f"//{host}").hostname or ""
    if name in ("", "localhost", socket.gethostname().lower()):
        return True
    if name.endswith((".localhost", ".local", ".internal")):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_private or address.is_unspecified


def origin_allowed(origin: str | None, host: str) -> bool:
    if origin is None or origin in (f"http://{host}", f"https://{host}"):
        return True
    return LOCAL_ORIGIN.fullmatch(origin) is not None


class Routes:
    """Answers requests for one Machine."""

    def __init__(self, machine: Machine) -> None:
        self.desk = Desk(machine)

    def answer(self, request: RecordedRequest) -> Answer:
        """Plan the answer to a request, as the whole of Ollama would."""
        host = request.header("host") or ""
        if not (host_allowed(host) and origin_allowed(request.header("origin"), host)):
            return Answer(403)
        path = request.target
        methods = self._methods(path)
        if methods is None:
            return self._unrouted(path)
        handler = methods.get(request.method)
        if handler is None:
            return text_answer("405 method not allowed", 405, ("Allow", ", ".join(methods)))
        try:
            return handler(self.desk, request)
        except RequestError as exc:
            return self._refusal(path, exc)

    def _methods(self, path: str) -> dict[str, Handler] | None:
        if path in TABLE:
            return TABLE[path]
        if path.startswith("/api/blobs/"):
            return {"HEAD": store_routes.find_blob, "POST": store_routes.upload}
        name = path.removeprefix("/v1/models/")
        one_segment = name != path and name and "/" not in unquote(name)
        return {"GET": read_routes.openai_model} if one_segment else None

    def _unrouted(self, path: str) -> Answer:
        """Redirect paths that gin would clean, else 404."""
        clean = re.sub("/+", "/", path)
        if clean != path and self._methods(clean.rstrip("/") or "/") is not None:
            return redirect_answer(307, clean)
        if path.endswith("/") and path.rstrip("/") in TABLE:
            return redirect_answer(301, path.rstrip("/"))
        return text_answer("404 page not found", 404)

    def _refusal(self, path: str, exc: RequestError) -> Answer:
        if exc.layer == "native":
            return json_answer({"error": exc.text}, exc.status)
        make = middleware_error if exc.layer == "middleware" else error_answer
        return make(path, exc.status, exc.text)
