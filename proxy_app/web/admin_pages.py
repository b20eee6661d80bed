"""The admin pages: what an operator sees of the fleet, and steers it with. All changes go through the JSON API."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from flask import g, render_template, request
from msgspec.structs import replace
from werkzeug.exceptions import NotFound

from proxy_app.domain import parse_limits
from proxy_app.services.admin.shapes import ChartView, KeyView, ModelsView, ModelView
from proxy_app.store.redis import unix_now
from proxy_app.web import units
from proxy_app.web.charts import charts
from proxy_app.web.hosts import is_this_machine
from proxy_app.web.respond import Pairs, Raw, runtime

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

_ASSETS = {
    "admin.css": "text/css; charset=utf-8",
    "admin.js": "text/javascript; charset=utf-8",
    "favicon.svg": "image/svg+xml",
}
_STATIC = Path(__file__).parent / "static"


# -- pages -----------------------------------------------------------------------------------------


def fleet() -> Raw:
    return _page("fleet", fleet=runtime().admin.fleet())


def models() -> Raw:
    office = runtime().admin
    found = office.models(request.args.get("query", "").strip(), max(_number("page") or 1, 1))
    return _page("models", found=found, backends=office.backend_names())


def traffic() -> Raw:
    span_s = _number("span")
    span_s = span_s if span_s in dict(SPANS) else SPANS[0][0]
    office, labels = runtime().admin, _labels(runtime().access.labels())
    chart = _labelled(office.chart(span_s), labels)
    return _page("traffic", traffic=office.traffic(), charts=charts(chart), span_s=span_s, labels=labels)


def keys() -> Raw:
    office = runtime().admin
    usage, example = office.usage(USAGE_S, USAGE_BY), _example(office.models("", 1))
    csv = "/admin/api/usage.csv?" + urlencode([("since_s", int(USAGE_S)), *(("by", name) for name in USAGE_BY)])
    about = {"keys": office.keys().keys, "usage": usage, "csv": csv, "model": example}
    return _page("keys", key_in_path=office.server.key_in_path, limits_of=_limits, **about)


def events() -> Raw:
    kind, before = request.args.get("kind", "").strip(), _number("before")
    found, labels = runtime().admin.events(kind, before), runtime().access.labels()
    return _page("events", found=found, kind=kind, before=before, labels=labels)


def settings() -> Raw:
    return _page("settings", settings=runtime().admin.settings().settings)


def login() -> Raw:
    """Needs no key. After it comes the page `next`, if that is one of ours: a link of others leads nowhere else."""
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
    return Raw(body, 200, headers)


# -- what they share -------------------------------------------------------------------------------


def _page(name: str, **about: Any) -> Raw:
    now = unix_now()
    shared = {"page": name, "nav": NAV, "spans": SPANS, "kinds": KINDS, "now": now, "asset": _address, "units": units}
    who = getattr(g.get("caller"), "key_id", "")
    label = runtime().access.labels().get(who, "") if who else ""
    known = {"insecure": is_insecure(), "who": who, "who_label": label, "origin": request.host_url[:-1]}
    body = render_template(f"admin/{name}.html", **shared, **known, **about).encode("utf-8", "replace")
    return Raw(body, 200, _html(body))


def _html(body: bytes) -> Pairs:
    return [
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Length", str(len(body))),
        ("Vary", "Cookie"),
    ]


def is_insecure() -> bool:
    """Could others on the way read what is sent here?"""
    return not request.is_secure and not is_this_machine(request.host)


def _number(name: str) -> int | None:
    """A whole number of the query; None where there is none that makes sense."""
    text = request.args.get(name, "")
    return int(text) if re.fullmatch(r"[0-9]{1,15}", text) else None


def _limits(key: KeyView) -> dict[str, int | None]:
    """What a key's own limits are, by name; nothing where they cannot be read."""
    try:
        return asdict(parse_limits(key.limits))
    except ValueError:
        return {}


def _labels(found: Mapping[str, str]) -> dict[str, str]:
    """What people call a key, by its id; with the id where several are called so."""
    names = Counter(found.values())
    return {key_id: label if names[label] == 1 else f"{label} ({key_id})" for key_id, label in found.items()}


def _labelled(chart: ChartView, labels: Mapping[str, str]) -> ChartView:
    """The same with the labels of keys."""
    points = [
        replace(at, gpu_s={labels.get(key, key): spent for key, spent in at.gpu_s.items()}) for at in chart.gpu_points
    ]
    return replace(chart, gpu_points=points)


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
