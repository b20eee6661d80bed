"""The listings as one caller sees them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

from cachetools import LRUCache

from proxy_app.dialects import ollama, openai
from proxy_app.domain import Caller, Fleet, Listing, parse_name
from proxy_app.errors import BadRequest

# Distinct allow-lists whose listings a worker keeps; each is about as large as the whole listing.
REMEMBERED = 64


class Views:
    """Finished listings for callers who may not use everything. Owned by: the worker's runtime.

    A listing is made once for each allow-list and each catalogue; callers without a list get the Fleet's own.
    """

    def __init__(self) -> None:
        self._made: LRUCache[tuple[str, str, tuple[str, ...]], Listing] = LRUCache(REMEMBERED)

    def tags(self, fleet: Fleet, caller: Caller) -> Listing:
        """`GET /api/tags`."""
        return self._made_once("tags", fleet, caller) if caller.models else fleet.tags

    def models(self, fleet: Fleet, caller: Caller) -> Listing:
        """`GET /v1/models`."""
        return self._made_once("models", fleet, caller) if caller.models else fleet.models

    def loaded(self, fleet: Fleet, caller: Caller) -> bytes:
        """`GET /api/ps`."""
        if not caller.models:
            return fleet.loaded
        return ollama.loaded(item for item in json.loads(fleet.loaded)["models"] if _is_shown(item, caller))

    def _made_once(self, kind: str, fleet: Fleet, caller: Caller) -> Listing:
        # By what is listed, not by its number: a registry that is made anew counts from 0 again.
        key = (kind, fleet.tags.etag, caller.models)
        found = self._made.get(key)
        if found is None:
            items = _items(fleet, caller)
            body = ollama.tags(items) if kind == "tags" else openai.models(items)
            found = self._made[key] = Listing(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')
        return found


def _items(fleet: Fleet, caller: Caller) -> Iterator[Mapping[str, Any]]:
    live = (fleet.live_holders(canonical) for canonical in fleet.holders)
    return (held[0].item for held in live if held and _is_shown(held[0].item, caller))


def _is_shown(item: Mapping[str, Any], caller: Caller) -> bool:
    try:
        return caller.may_use(parse_name(str(item.get("name") or item.get("model") or "")))
    except BadRequest:
        return False
