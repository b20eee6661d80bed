"""Who asks: by a key, by a login, or as this machine itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flask import g, request

from proxy_app.dialects.credentials import Presented, Signed, presented
from proxy_app.domain import Caller
from proxy_app.errors import Forbidden, Unauthorized
from proxy_app.settings import Settings
from proxy_app.web import hosts
from proxy_app.web.respond import runtime

# A cookie with this prefix is taken from https alone, and from this very host (RFC 6265bis §4.1.3.2).
SECURE_COOKIE, PLAIN_COOKIE = "__Host-caravan", "caravan"
_FORWARDED = ("HTTP_FORWARDED", "HTTP_X_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA")
_HARMLESS = ("GET", "HEAD")


def by_key(settings: Settings) -> Caller:
    """Who asks, by a key or as this machine. Raises: Unauthorized, Unavailable."""
    environ = request.environ
    return runtime().access.caller(_given(), environ.get("REMOTE_ADDR", ""), is_local=is_local(settings, environ))


def by_login(settings: Settings) -> Caller:
    """Who asks, by a login too; a page of somebody else's never asks for anything.

    Raises:
        Unauthorized, Unavailable: nobody who is let in.
        Forbidden: a change that another page may have asked for; or a signature.
    """
    environ, token, given = request.environ, session_token(), _given()
    caller = runtime().admin.sessions.caller(token, environ.get("REMOTE_ADDR", "")) if token else None
    if caller is None and isinstance(given, Signed):
        # It covers no body: whoever sees one could send it again with another.
        raise Forbidden("a signature is not enough here: send the text of a key, or log in")
    if isinstance(given, str) and (found := _by_good_key(settings, is_needed=caller is None)):
        check_origin(environ, needs_proof=False)
        return found
    check_origin(environ, needs_proof=bool(token))
    if caller is None:
        # A cookie may be another Caravan's, of the same host.
        return by_key(settings)
    g.session_token = token
    return caller


def _given() -> Presented:
    environ = request.environ
    return presented(environ, environ["REQUEST_METHOD"], environ["PATH_INFO"])


def _by_good_key(settings: Settings, *, is_needed: bool) -> Caller | None:
    """Who presents a key. A proxy in front may have put something of its own in its place: with a login, that is no
    reason to refuse. Raises: Unauthorized, Unavailable: where it is needed."""
    try:
        return by_key(settings)
    except Unauthorized:
        if is_needed:
            raise
        return None


def session_token() -> str:
    """The token of a login, where the browser sent one."""
    return request.cookies.get(SECURE_COOKIE if is_secure() else PLAIN_COOKIE, "")


def is_secure() -> bool:
    """Does the client speak https, as far as we or a proxy that is trusted can tell?"""
    return bool(request.environ.get("wsgi.url_scheme") == "https")


def is_local(settings: Settings, environ: Mapping[str, Any]) -> bool:
    """Does this machine itself ask, and nobody through it? Without keys that is all that tells an operator from
    anybody."""
    via_proxy = settings.trusted_hops or any(name.startswith(_FORWARDED) for name in environ)
    here = all(hosts.is_this_machine(environ.get(name, "?")) for name in ("REMOTE_ADDR", "HTTP_HOST"))
    return not settings.is_public and not via_proxy and here


def check_origin(environ: Mapping[str, Any], *, needs_proof: bool) -> None:
    """Refuse what a page of another origin asks for (OWASP ASVS 5.0, 3.5.1).

    Args:
        needs_proof: the browser adds the credentials by itself: a change has to say where it comes from.

    Raises:
        Forbidden: it did, or may have.
    """
    origin, site = environ.get("HTTP_ORIGIN"), environ.get("HTTP_SEC_FETCH_SITE")
    host = environ.get("HTTP_HOST", "")
    is_own = origin in (f"http://{host}", f"https://{host}") if origin is not None else site == "same-origin"
    is_foreign = (origin is not None and not is_own) or site in ("cross-site", "same-site")
    if environ["REQUEST_METHOD"] in _HARMLESS:
        # A link from elsewhere may lead here; what it shows stays with who is logged in.
        return
    if is_foreign or (needs_proof and not is_own):
        raise Forbidden("this was not asked for by Caravan's own page")
