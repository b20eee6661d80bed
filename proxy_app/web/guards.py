"""What stands between the listener and a view.

Every request passes `first`: its id, the path as it was sent, whose Host and Origin it carries, whether it has been
here before. A route's row in `routes` says what else guards it; `guarded` puts that around its view.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, unquote, urlsplit

from flask import g, request
from werkzeug.exceptions import MethodNotAllowed, NotFound

from proxy_app.dialects.errors import Dialect
from proxy_app.domain import Scope
from proxy_app.errors import (
    BadRequest,
    ClientGone,
    Forbidden,
    Loop,
    RequestError,
    Stopping,
    Unauthorized,
    Unavailable,
)
from proxy_app.services.access import check_scope
from proxy_app.services.relayed import STOPPING
from proxy_app.settings import Settings
from proxy_app.web import callers, hosts
from proxy_app.web.connection import close_after_answer
from proxy_app.web.respond import Raw, error_answer

View = Callable[..., Raw]
Need = Scope | Literal["open"]
"""The scope that a route needs; `open` needs no key either."""
Login = Literal["", "api", "page"]

# The longest request body is the setting CARAVAN_MAX_BODY; that of an upload, which is never held, has no limit.
FROM_SETTING = -1
UNLIMITED = -2
NO_BODY = 0

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_PLAIN_PATH = re.compile(r"(?:/|(?:/(?!\.\.?(?:/|$))[A-Za-z0-9._:@-]+)+/?)")
# The only routes with a part that clients choose, and so may escape.
_WITH_NAMES = ("/v1/models/", "/api/blobs/", "/api/user/keys/")
# What Go takes for a Host (httpguts.ValidHostHeader), and so Ollama.
_HOST = re.compile(r"[A-Za-z0-9!$%&()*+,.:;=\[\]'_~-]*")


@dataclass(frozen=True, slots=True)
class Route:
    """One row of the route table.

    Args:
        path: in Flask's form; a variable part is the last one.
        methods: all that are answered; OPTIONS is answered by `first`.
        body: longest request body in bytes, or FROM_SETTING, or UNLIMITED.
        dialect: of the errors that Caravan itself raises.
        login: is a login as good as a key here? `page`: who has none is sent to where they get one.
    """

    blueprint: str
    path: str
    view: View
    methods: tuple[str, ...]
    scope: Need
    body: int = NO_BODY
    dialect: Dialect = "ollama"
    login: Login = ""

    @property
    def endpoint(self) -> str:
        return f"{'_'.join(self.methods)} {self.path}".replace(".", "_")


def guarded(route: Route, settings: Settings) -> View:
    """A route's view with its guards around it."""
    limit = {FROM_SETTING: settings.max_body, UNLIMITED: None}.get(route.body, route.body)

    def view(**parts: str) -> Raw:
        if request.method not in route.methods:
            # Werkzeug lets HEAD pass where there is GET; Ollama does not.
            raise MethodNotAllowed(valid_methods=route.methods)
        g.body_limit = limit
        try:
            if route.scope != "open":
                g.caller = callers.by_login(settings) if route.login else callers.by_key(settings)
                check_scope(g.caller, route.scope)
            return route.view(**parts)
        except (Unauthorized, Forbidden) as error:
            return to_login() if route.login == "page" else error_answer(error, route.dialect)
        except RequestError as error:
            return error_answer(error, route.dialect)
        except Stopping:
            return error_answer(Unavailable(STOPPING, retry_after_s=1), route.dialect)
        except ClientGone:
            # Nobody reads this; the status is nginx's word for it.
            return Raw(b"", "499 Client Closed Request")

    view.__name__ = route.endpoint
    return view


def to_login() -> Raw:
    """To where one logs in, and from there back here."""
    return Raw(b"", 303, [("Location", f"/admin/login?next={quote(request.full_path.rstrip('?'))}")])


def first(settings: Settings) -> Callable[[], Raw | None]:
    """The guard of all requests, before it is known which route they mean."""
    host_allowed = hosts.host_guard(settings.hosts)
    origin_allowed = hosts.origin_guard(settings.origins, with_local=not settings.is_public)
    checks_host = not settings.is_public
    own = settings.via.partition(" ")[2]

    def guard() -> Raw | None:
        environ = request.environ
        g.request_id = request_id(environ.get("HTTP_X_REQUEST_ID", ""))
        host = _check_target(environ)
        _check_connection(environ)
        origin = environ.get("HTTP_ORIGIN")
        if origin is not None and not origin_allowed(origin, host):
            return Raw(b"", 403)
        g.origin_allowed = True
        if origin is not None and environ["REQUEST_METHOD"] == "OPTIONS":
            return Raw(b"", 204, hosts.PREFLIGHT_HEADERS)
        if checks_host and not host_allowed(host):
            return Raw(b"", 403)
        if own in environ.get("HTTP_VIA", ""):
            raise Loop
        return None

    return guard


def request_id(given: str) -> str:
    """The client's own id where it is harmless, else a new one."""
    return given if _REQUEST_ID.fullmatch(given) else "%032x" % random.getrandbits(128)


def _check_target(environ: dict[str, Any]) -> str:
    """Refuse a target that is spelled in a way that some reader may take for another one; returns its host.

    Raises:
        NotFound: no route is spelled so.
        BadRequest: HTTP/1.1 without Host (RFC 9112 §3.2), or one that is none.
    """
    target = environ.get("RAW_URI") or environ["PATH_INFO"]
    if "HTTP_HOST" not in environ and environ.get("SERVER_PROTOCOL") == "HTTP/1.1":
        raise _refused("the Host header is missing")
    if not target.startswith("/"):
        # The absolute form: its host wins over the header (RFC 9112 §3.2.2).
        parts = urlsplit(target)
        target, environ["HTTP_HOST"] = parts.path or "/", parts.netloc.rpartition("@")[2]
        if parts.scheme.lower() not in ("http", "https"):
            raise _refused("only http is spoken here")
    path = target.partition("?")[0]
    if not _PLAIN_PATH.fullmatch(path) and not _is_named(path):
        raise NotFound
    host: str = environ.get("HTTP_HOST", "")
    if not _HOST.fullmatch(host):
        raise _refused("malformed Host header")
    return host


def _check_connection(environ: Mapping[str, Any]) -> None:
    """Refuse a body whose end some reader may see elsewhere; note that the client wants to leave.

    Raises:
        BadRequest: a transfer coding that is not plain chunked (RFC 9112 §6.1).
    """
    coding = environ.get("HTTP_TRANSFER_ENCODING")
    if coding is not None and coding.strip().lower() != "chunked":
        raise _refused("the body has a transfer coding that is not plain chunked")
    options = environ.get("HTTP_CONNECTION", "")
    # gunicorn knows the word only where it stands alone (RFC 9112 §9.6).
    if "," in options and "close" in (option.strip().lower() for option in options.split(",")):
        close_after_answer()


def _refused(why: str) -> BadRequest:
    """A request that is not what it seems: nothing else is read from its connection."""
    close_after_answer()
    return BadRequest(why)


def _is_named(path: str) -> bool:
    """Is it the path of a route with a name in it, escaped in whatever way, that leads nowhere else?"""
    segments = unquote(path).split("/")
    return path.startswith(_WITH_NAMES) and not {"", ".", ".."} & set(segments[1:]) and "\\" not in path
