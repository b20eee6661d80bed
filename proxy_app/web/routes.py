"""The route table: all that Caravan serves. Nothing else reaches a view, and no path of a client's reaches a backend.

Source: Ollama server/routes.go:1841-1929 (v0.33.0-rc2), measured. Each row names what guards it; `guards.guarded`
puts those around its view.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from proxy_app.dialects.inference import ROUTES
from proxy_app.web import account, admin_api, admin_pages, openai, ops, show, store_ops, tags
from proxy_app.web.admin_live import live
from proxy_app.web.guards import FROM_SETTING, NO_BODY, UNLIMITED, Login, Route
from proxy_app.web.openapi_document import document
from proxy_app.web.relayed import relayed
from proxy_app.web.respond import Raw, json_answer

# A name, a flag and two overlays. It is parsed whole, and 1 MiB of brackets takes 0.2 s in which nothing else moves.
LONGEST_SHOW = 256 << 10
# Names, and what a model is made of: not the files themselves.
LONGEST_ORDER = 1 << 20

GET, POST, DELETE, HEAD = ("GET",), ("POST",), ("DELETE",), ("HEAD",)
HEAD_GET = ("HEAD", "GET")


def _inference() -> Iterator[Route]:
    for route in ROUTES:
        blueprint = {"ollama": "chat", "responses": "openai"}.get(route.dialect, route.dialect)
        yield Route(blueprint, route.path, relayed(route), POST, "infer", FROM_SETTING, route.dialect)


def _admin() -> Iterator[Route]:
    described = msgspec.json.encode(document(admin_api.ENDPOINTS))
    for one in admin_api.ENDPOINTS:
        limit = admin_api.LONGEST_ORDER if one.takes else NO_BODY
        methods = (one.method,)
        login: Login = "" if one.scope == "open" else "api"
        yield Route("admin", admin_api.ROOT + one.path, admin_api.view(one), methods, one.scope, limit, login=login)
    yield Route("admin", f"{admin_api.ROOT}/openapi.json", lambda: json_answer(described), GET, "admin", login="api")
    yield Route("admin", "/admin/live", live, GET, "admin", login="api")
    for path, page in _PAGES.items():
        yield Route("admin", path, page, GET, "admin", login="page")
    yield Route("admin", "/admin/login", admin_pages.login, GET, "open")
    yield Route("admin", "/admin/static/<name>", admin_pages.asset, GET, "open")


_PAGES = {
    "/admin": lambda: Raw(b"", 308, [("Location", "/admin/")]),
    "/admin/": admin_pages.fleet,
    "/admin/models": admin_pages.models,
    "/admin/traffic": admin_pages.traffic,
    "/admin/keys": admin_pages.keys,
    "/admin/events": admin_pages.events,
    "/admin/settings": admin_pages.settings,
}


TABLE = (
    Route("tags", "/", tags.running, HEAD_GET, "open"),
    Route("tags", "/api/version", tags.version, HEAD_GET, "read"),
    Route("tags", "/api/status", tags.status, GET, "read"),
    Route("tags", "/api/tags", tags.tags, HEAD_GET, "read"),
    Route("tags", "/api/ps", tags.loaded, GET, "read"),
    Route("tags", "/api/experimental/model-recommendations", tags.recommendations, GET, "read"),
    Route("show", "/api/show", show.show, POST, "read", LONGEST_SHOW),
    Route("store_ops", "/api/pull", store_ops.pull, POST, "manage", LONGEST_ORDER),
    Route("store_ops", "/api/push", store_ops.push, POST, "manage", LONGEST_ORDER),
    Route("store_ops", "/api/create", store_ops.create, POST, "manage", LONGEST_ORDER),
    Route("store_ops", "/api/copy", store_ops.copy, POST, "manage", LONGEST_ORDER),
    Route("store_ops", "/api/delete", store_ops.delete, DELETE, "manage", LONGEST_ORDER),
    Route("store_ops", "/api/blobs/<digest>", store_ops.find_blob, HEAD, "manage"),
    Route("store_ops", "/api/blobs/<digest>", store_ops.upload, POST, "manage", UNLIMITED),
    Route("account", "/api/me", account.me, POST, "manage", LONGEST_ORDER),
    Route("account", "/api/signout", account.signout, POST, "manage", LONGEST_ORDER),
    Route("account", "/api/user/keys/<key>", account.drop_key, DELETE, "manage", LONGEST_ORDER),
    Route("openai", "/v1/models", openai.models, GET, "read", dialect="openai"),
    Route("openai", "/v1/models/<path:name>", openai.model, GET, "read", dialect="openai"),
    *_inference(),
    *_admin(),
    Route("ops", "/livez", ops.livez, GET, "open"),
    Route("ops", "/readyz", ops.readyz, GET, "open"),
)
