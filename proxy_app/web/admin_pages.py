"""The admin pages: what an operator sees of the fleet, and steers it with. What they change goes by the JSON API."""

from __future__ import annotations

import hashlib
import re
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

from flask import current_app, g, render_template, request
from werkzeug.exceptions import NotFound

from proxy_app.services.admin.shapes import (
    ChartView,
    EventsView,
    FleetView,
    KeysView,
    ModelsView,
    ModelView,
    SettingsView,
    TrafficView,
    UsageView,
)
from proxy_app.store.redis import unix_now
from proxy_app.web import units
from proxy_app.web.charts import charts
from proxy_app.web.hosts import is_this_machine
from proxy_app.web.respond import Pairs, Raw

NAV = (
    ("fleet", "/admin/", "Fleet"),
    ("models", "/admin/models", "Models"),
    ("traffic", "/admin/traffic", "Traffic"),
    ("keys", "/admin/keys", "Keys"),
    ("events", "/admin/events", "Events"),
    ("settings", "/admin/settings", "Settings"),
)
SPANS = ((3600, "1 h"), (6 * 3600, "6 h"), (86400, "24 h"), (7 * 86400, "7 d"), (30 * 86400, "30 d"))
# What the kinds of events begin with.
KINDS = (
    ("", "Everything"),
    ("backend", "Backends"),
    ("model", "Models"),
    ("request", "Requests"),
    ("key", "Keys"),
    ("session", "Logins"),
)
USAGE_S = 30 * 86400.0
USAGE_BY = ("key", "model")
# A model's name goes into lines that people paste into a shell; backends are not trusted to name theirs well.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,199}")

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
SAFETY = (
    ("Content-Security-Policy", CSP),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Referrer-Policy", "same-origin"),
)
_ASSETS = {
    "admin.css": "text/css; charset=utf-8",
    "admin.js": "text/javascript; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}
_STATIC = Path(__file__).parent / "static"


class Reader(Protocol):
    """What the pages ask for their content."""

    def fleet(self) -> FleetView: ...
    def models(self, query: str, page: int) -> ModelsView: ...
    def traffic(self) -> TrafficView: ...
    def chart(self, span_s: float) -> ChartView: ...
    def keys(self) -> KeysView: ...
    def events(self, kind: str, before: int | None) -> EventsView: ...
    def settings(self) -> SettingsView: ...
    def usage(self, since_s: float, by: tuple[str, ...]) -> UsageView: ...


# -- pages -----------------------------------------------------------------------------------------


def fleet() -> Raw:
    return _page("fleet", fleet=_reader().fleet())


def models() -> Raw:
    found = _reader().models(request.args.get("query", "").strip(), max(_number("page") or 1, 1))
    names = [backend.name for backend in _reader().fleet().backends]
    return _page("models", found=found, backends=names)


def traffic() -> Raw:
    span_s = _number("span")
    span_s = span_s if span_s in dict(SPANS) else SPANS[0][0]
    return _page("traffic", traffic=_reader().traffic(), charts=charts(_reader().chart(span_s)), span_s=span_s)


def keys() -> Raw:
    usage = _reader().usage(USAGE_S, USAGE_BY)
    csv = "/admin/api/usage.csv?" + urlencode([("since_s", int(USAGE_S)), *(("by", name) for name in USAGE_BY)])
    return _page("keys", keys=_reader().keys().keys, usage=usage, csv=csv, model=_example(_reader().models("", 1)))


def events() -> Raw:
    kind, before = request.args.get("kind", "").strip(), _number("before")
    return _page("events", found=_reader().events(kind, before), kind=kind, before=before)


def settings() -> Raw:
    return _page("settings", settings=_reader().settings().settings)


def login() -> Raw:
    """Needs no key. It leads to `next` where that is one of our pages: a foreign link must not choose the way."""
    wanted = request.args.get("next", "")
    is_ours = wanted.partition("?")[0] in {path for _, path, _ in NAV}
    return _page("login", next=wanted if is_ours else "/admin/")


def asset(name: str) -> Raw:
    """A file that the pages need; it needs no key. Its address changes with its content."""
    if name not in _ASSETS:
        raise NotFound
    body = _file(name)
    is_current = request.args.get("v") == _version(name)
    keeping = "public, max-age=31536000, immutable" if is_current else "no-cache"
    headers = [("Content-Type", _ASSETS[name]), ("Content-Length", str(len(body))), ("Cache-Control", keeping)]
    return Raw(body, 200, [*headers, *SAFETY])


# -- what they share -------------------------------------------------------------------------------


def _reader() -> Reader:
    reader: Reader = current_app.extensions["proxy"].admin
    return reader


def _page(name: str, **about: Any) -> Raw:
    now = unix_now()
    shared = {"page": name, "nav": NAV, "spans": SPANS, "kinds": KINDS, "now": now, "asset": _address, "units": units}
    known = {"insecure": is_insecure(), "who": getattr(g.get("caller"), "key_id", ""), "origin": request.host_url[:-1]}
    body = render_template(f"admin/{name}.html", **shared, **known, **about).encode("utf-8", "replace")
    return Raw(body, 200, [*_html(body), *SAFETY])


def _html(body: bytes) -> Pairs:
    return [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Vary", "Cookie"),
    ]


def is_insecure() -> bool:
    """Could others on the way read what is sent here?"""
    return not request.is_secure and not is_this_machine(request.host)


def _number(name: str) -> int | None:
    """A whole number of the query; None where there is none that makes sense."""
    text = request.args.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _example(found: ModelsView) -> ModelView | None:
    """A model that the lines for a new key's owner can name: one that chats, if there is one."""
    plain = [model for model in found.models if _PLAIN_NAME.fullmatch(model.name)]
    chatting = [model for model in plain if "completion" in model.capabilities]
    return next(iter(chatting or plain), None)


def _address(name: str) -> str:
    return f"/admin/static/{name}?v={_version(name)}"


@lru_cache
def _file(name: str) -> bytes:
    return (_STATIC / name).read_bytes()


@lru_cache
def _version(name: str) -> str:
    return hashlib.sha256(_file(name)).hexdigest()[:16]
