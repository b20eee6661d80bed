"""Ollama's own wire form: show requests, listings, error texts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from proxy_app.dialects.errors import compact
from proxy_app.dialects.gojson import read_fields
from proxy_app.domain import ShowQuery, parse_listed
from proxy_app.errors import InvalidModelName

RUNNING = b"Ollama is running"
NOT_FOUND = b"404 page not found"
METHOD_NOT_ALLOWED = b"405 method not allowed"
SHOW_CLOUD_DISABLED = "ollama cloud is disabled: remote model details are unavailable"
COPILOT = "GitHubCopilotChat/"
NO_RECOMMENDATIONS = b'{"recommendations":[]}'

# field of ShowRequest (api/types.go:722-734) -> the Go type that its error texts name
_SHOW_FIELDS = {
    "model": "string",
    "system": "string",
    "template": "string",
    "verbose": "bool",
    "options": "map[string]interface {}",
    "name": "string",
}


def read_show(body: bytes) -> ShowQuery:
    """Read the body of `POST /api/show` as Ollama does: keys fold, the last one wins, null changes nothing.

    Raises:
        EmptyBody, BadRequest: with Ollama's own text where it is fixed.
    """
    # Clients ask for the same few documents over and over, with the same few bytes.
    return _read_short_show(body) if len(body) <= 1024 else _read_show(body)


def _read_show(body: bytes) -> ShowQuery:
    values = read_fields(body, "ShowRequest", _SHOW_FIELDS)
    options = values.get("options")
    return ShowQuery(
        model=values.get("model") or values.get("name", ""),
        verbose=values.get("verbose", False),
        has_overlay=bool(values.get("system") or (options and options.pairs)),
    )


_read_short_show = lru_cache(maxsize=1024)(_read_show)


def show_body(model: str, verbose: bool) -> bytes:
    """The request with which Caravan itself asks a backend for a document."""
    return compact({"model": model, "verbose": True} if verbose else {"model": model})


def tags(items: Iterable[Mapping[str, Any]]) -> bytes:
    """`GET /api/tags`, newest first as Ollama sorts; names break ties, where Ollama's order is random."""
    ordered = sorted(items, key=lambda item: (-modified_unix(item), str(item.get("name"))))
    return compact({"models": ordered})


def loaded(items: Iterable[Mapping[str, Any]]) -> bytes:
    """`GET /api/ps`: the last to expire first, as Ollama sorts."""
    by_name: dict[str, Mapping[str, Any]] = {}
    for item in items:
        seen = by_name.setdefault(str(item.get("name")).lower(), item)
        if str(item.get("expires_at")) > str(seen.get("expires_at")):
            by_name[str(item.get("name")).lower()] = item
    ordered = sorted(by_name.values(), key=lambda item: str(item.get("expires_at")), reverse=True)
    return compact({"models": ordered})


def status(disabled: bool, source: str) -> bytes:
    """`GET /api/status`: may the cloud be used, and what switched it off (none, env, config or both)."""
    return compact({"cloud": {"disabled": disabled, "source": source}})


def version(text: str) -> bytes:
    """`GET /api/version`."""
    return compact({"version": text})


def modified_unix(item: Mapping[str, Any]) -> int:
    """The whole seconds of a record's `modified_at`; 0 where it has none that can be read."""
    try:
        return int(datetime.fromisoformat(str(item.get("modified_at"))).timestamp())
    except ValueError:
        return 0


def namespace(item: Mapping[str, Any]) -> str:
    """The namespace of a listed model: `owned_by` in OpenAI's listing."""
    try:
        return parse_listed(str(item.get("name"))).namespace
    except InvalidModelName:
        return ""
