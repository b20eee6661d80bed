"""What the fleet knows of its models, answered from memory: show documents, single models."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from cachetools import LRUCache

from proxy_app.dialects import ollama, openai
from proxy_app.dialects.errors import compact
from proxy_app.domain import Caller, Fleet, ModelName, ShowEntry, ShowKey, ShowQuery, parse_name
from proxy_app.errors import CacheAway, CloudDisabled, Hidden, ModelNotFound, Unavailable
from proxy_app.services.access import fleet_for
from proxy_app.services.documents import Document, Documents, sources
from proxy_app.services.fleet import FleetReloader, all_down, check_seen
from proxy_app.services.flights import Flights
from proxy_app.settings import Settings
from proxy_app.store.cache import ShowCache
from proxy_app.store.redis import unix_now

log = logging.getLogger(__name__)

CacheState = Literal["hit", "miss", "stale", "bypass"]
# How often a worker tells Redis which documents were asked for.
NOTE_S = 5.0


@dataclass(frozen=True, slots=True)
class ShowAnswer:
    """An answer to a show request. `age_s` is the document's age in whole seconds."""

    status: int
    cache: CacheState
    age_s: int = 0
    body: bytes = field(repr=False, default=b"")


class Catalog:
    """Answers metadata requests of one worker.

    Owned by: the worker's runtime. `_memory` is the layer above Redis: a document is valid while its digest is
    the Fleet's.
    """

    def __init__(self, reloader: FleetReloader, cache: ShowCache, documents: Documents, settings: Settings) -> None:
        self._reloader, self._cache, self._documents, self._settings = reloader, cache, documents, settings
        self._memory: LRUCache[ShowKey, ShowEntry] = LRUCache(
            settings.worker_cache_bytes, getsizeof=lambda entry: len(entry.body)
        )
        self._flights: Flights[Document] = Flights()
        self._refreshed: dict[ShowKey, float] = {}
        self._asked: dict[str, tuple[str, float]] = {}
        self._hits: Counter[str] = Counter()
        self._stop = threading.Event()
        self._notes = threading.Thread(target=self._note_asked, name="asked", daemon=True)
        self._notes.start()

    def close(self) -> None:
        self._stop.set()
        self._notes.join(2)

    def show(self, query: ShowQuery, raw_body: bytes, user_agent: str, caller: Caller) -> ShowAnswer:
        """Answer `POST /api/show`.

        Args:
            raw_body: forwarded as it is where the query carries overlays.

        Raises:
            ModelRequired, InvalidModelName, Hidden, ModelNotFound, CloudDisabled, Unavailable.
        """
        name = parse_name(query.model)
        fleet = fleet_for(self._reloader, caller, name, query.model)
        if name.is_cloud:
            return _told(self._show_cloud(fleet, name, query, raw_body), query, caller)
        self._check_known(fleet, name)
        answer = _told(self._show_local(fleet, name, query, raw_body), query, caller)
        if user_agent.startswith(ollama.COPILOT) and answer.status == 200:
            return _for_copilot(answer, query.model)
        return answer

    def model(self, text: str, caller: Caller) -> bytes:
        """Answer `GET /v1/models/<model>`, names with a namespace included.

        Raises:
            As `show`.
        """
        name = parse_name(text)
        fleet = fleet_for(self._reloader, caller, name, text)
        if name.is_cloud:
            answer = self._show_cloud(fleet, name, ShowQuery(text), b"")
            if answer.status != 200:
                raise ModelNotFound(f"model '{name.shortest}' not found") if caller.is_told_of_absence else Hidden(text)
            document = json.loads(answer.body)
        else:
            self._check_known(fleet, name)
            document = fleet.holders[name.canonical][0].item
        item = {"modified_at": document.get("modified_at"), "name": name.shortest}
        return compact(openai.model(text, item)) + b"\n"

    def peek(self, canonical: str) -> ShowEntry | None:
        """A local model's document as it lies in the cache, for who only looks: nobody is asked for it."""
        key = ShowKey("local", canonical, False)
        return self._memory.get(key) or self._shared(key)[0]

    def hits(self, canonicals: Sequence[str]) -> list[int | None]:
        """How often local models' documents were served by all workers, up to some seconds ago."""
        try:
            return list(self._cache.hits([ShowKey("local", canonical, False) for canonical in canonicals]))
        except CacheAway:
            return [None] * len(canonicals)

    def _show_local(self, fleet: Fleet, name: ModelName, query: ShowQuery, raw_body: bytes) -> ShowAnswer:
        holders = fleet.live_holders(name.canonical)
        if not query.is_cacheable or (holders and holders[0].is_remote_stub):
            if not holders:
                raise all_down(name)
            return self._bypass(fleet, name, raw_body)
        key = ShowKey("local", name.canonical, query.verbose)
        entry = self._memory.get(key)
        if entry is not None and entry.digest == fleet.digest(name.canonical) and holders:
            self._ask_noted(key, name)
            return _served("hit", entry)
        return self._show_shared(fleet, name, key, stale_only=not holders)

    def _show_shared(self, fleet: Fleet, name: ModelName, key: ShowKey, *, stale_only: bool) -> ShowAnswer:
        """The worker's own layer had nothing current: Redis, then a holder."""
        entry, away = self._shared(key)
        entry = entry or self._memory.get(key)
        if stale_only:
            if entry is None:
                raise all_down(name)
            return _served("stale", entry)
        if entry is not None and entry.digest == fleet.digest(name.canonical):
            self._remember(key, entry)
            self._ask_noted(key, name)
            return _served("hit", entry)
        return self._fetch(key, fleet, name, entry, alone=away)

    def _fetch(self, key: ShowKey, fleet: Fleet, name: ModelName, old: ShowEntry | None, *, alone: bool) -> ShowAnswer:
        """Get the document from a holder, together with whoever else of this worker waits for it.

        Args:
            old: what is known, whatever its digest.
            alone: Redis has just failed; do not wait for it again.
        """
        fetch = self._documents.fetch_alone if alone else self._documents.fetch
        timeout_s = self._settings.show_timeout_s
        try:
            document = self._flights.join(key, lambda: self._land(key, fetch(key, self._fleet_now, name, timeout_s)))
        except Unavailable:
            # Every holder went down just now: what is known is better than nothing.
            if old is None:
                raise
            return _served("stale", old)
        if document.status == 200:
            # Only what exists: a client could make up names without end.
            self._ask_noted(key, name, is_hit=False)
        return ShowAnswer(document.status, "miss", body=document.body)

    def _fleet_now(self) -> Fleet:
        return self._reloader.fleet

    def _land(self, key: ShowKey, document: Document) -> Document:
        if document.status == 200:
            self._remember(key, document.as_entry())
        return document

    def _bypass(self, fleet: Fleet, name: ModelName, raw_body: bytes) -> ShowAnswer:
        document = self._documents.ask(sources(fleet, name), lambda source: raw_body, self._settings.show_timeout_s)
        return ShowAnswer(document.status, "bypass", body=document.body)

    def _show_cloud(self, fleet: Fleet, name: ModelName, query: ShowQuery, raw_body: bytes) -> ShowAnswer:
        if fleet.forbids_cloud:
            raise CloudDisabled(ollama.SHOW_CLOUD_DISABLED)
        if not query.is_cacheable:
            return self._bypass(fleet, name, raw_body)
        key = ShowKey("cloud", name.canonical, query.verbose)
        entry, away = self._memory.get(key), False
        if entry is None:
            entry, away = self._shared(key)
        if entry is None:
            return self._fetch(key, fleet, name, None, alone=away)
        self._ask_noted(key, name)
        self._remember(key, entry)
        state: CacheState = "hit" if self._is_cooling(key) else "stale"
        if state == "stale":
            # Not under the document's own key: whoever waits for the document itself wants more than a refresh.
            self._flights.start(("refresh", key), lambda: self._revalidate(key, name))
        return _served(state, entry)

    def _revalidate(self, key: ShowKey, name: ModelName) -> Document:
        """Refresh a cloud document behind a served answer; a failure keeps the old one."""
        self._refreshed[key] = time.monotonic()
        try:
            fetched = self._cache.take_cooldown(key, int(self._settings.cloud_cooldown_s * 1000))
        except CacheAway:
            fetched = True
        if fetched:
            timeout_s = self._settings.show_timeout_s
            return self._land(key, self._documents.fetch(key, self._fleet_now, name, timeout_s, fresh=True))
        newer, _ = self._shared(key)
        if newer is not None:
            self._remember(key, newer)
        return Document(204, b"")

    def _is_cooling(self, key: ShowKey) -> bool:
        refreshed = self._refreshed.get(key)
        return refreshed is not None and time.monotonic() - refreshed < self._settings.cloud_cooldown_s

    def _check_known(self, fleet: Fleet, name: ModelName) -> None:
        if name.canonical in fleet.holders:
            return
        check_seen(fleet)
        raise ModelNotFound(f"model '{name.shortest}' not found")

    def _shared(self, key: ShowKey) -> tuple[ShowEntry | None, bool]:
        """What Redis has, and whether it was away."""
        try:
            return self._cache.get(key), False
        except CacheAway:
            return None, True

    def _remember(self, key: ShowKey, entry: ShowEntry) -> None:
        # A document longer than the whole layer has no place in it.
        if len(entry.body) <= self._memory.maxsize:
            self._memory[key] = entry

    def _ask_noted(self, key: ShowKey, name: ModelName, *, is_hit: bool = True) -> None:
        self._hits[str(key)] += is_hit
        self._asked[str(key)] = (name.given, unix_now())

    def _note_asked(self) -> None:
        """Tell Redis every few seconds what was asked for: it is hydrated at the next start."""
        while not self._stop.wait(NOTE_S):
            asked, self._asked = self._asked, {}
            hits, self._hits = self._hits, Counter()
            try:
                self._cache.note_asked(asked)
                self._cache.note_hits(hits)
            except CacheAway:
                self._asked = {**asked, **self._asked}
                self._hits += hits
            except Exception:  # the top of a thread
                log.exception("what was asked for could not be noted")


def _told(answer: ShowAnswer, query: ShowQuery, caller: Caller) -> ShowAnswer:
    """A holder's answer; that it has no such model is not everybody's to know."""
    if answer.status == 404 and not caller.is_told_of_absence:
        raise Hidden(query.model)
    return answer


def _served(state: CacheState, entry: ShowEntry) -> ShowAnswer:
    return ShowAnswer(200, state, max(0, int(unix_now() - entry.stored_at)), entry.body)


def _for_copilot(answer: ShowAnswer, model: str) -> ShowAnswer:
    """GitHub Copilot Chat names models by `general.basename`: it gets the name that it asked for.

    Source: Ollama server/routes.go:1383-1391 (v0.33.0-rc2). Applied after the cache, never stored.
    """
    document: dict[str, Any] = json.loads(answer.body)
    document["model_info"] = {**(document.get("model_info") or {}), "general.basename": model}
    return ShowAnswer(answer.status, answer.cache, answer.age_s, compact(document))
