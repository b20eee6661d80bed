"""The Fleet: built from the registry's rows, swapped in each process when they change."""

from __future__ import annotations

import hashlib
import logging
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from proxy_app.dialects import ollama, openai
from proxy_app.domain import Fleet, Health, Holding, Listing, Member, ModelName, parse_listed
from proxy_app.errors import InvalidModelName, RegistryAway, Unavailable
from proxy_app.settings import BackendSettings
from proxy_app.store.registry import Registry, Snapshot
from proxy_app.store.threads import NativeThread

log = logging.getLogger(__name__)

# How long a request waits for the first look at the backends.
DISCOVERY_S = 1.0


def build(rows: Snapshot, before: Fleet | None = None) -> Fleet:
    """Build a Fleet; where the catalogue's generation did not move, `before`'s finished listings are kept."""
    members = tuple(Member(b, rows.health.get(b.id, Health())) for b in rows.backends)
    by_id = {member.backend.id: member for member in members}
    volatile: dict[str, Any] = {
        "members": members,
        "by_id": by_id,
        "loaded": ollama.loaded(item for owner, item in rows.loaded if is_live(by_id, owner)),
        "warm": _warm(by_id, rows.loaded),
        "status": _status(members),
        "recommendations": _recommendations(members),
        "version": lowest_version(m.health.version for m in members if m.is_live),
        "discovered": any(member.is_live for member in members) or _is_complete(members),
        "complete": _is_complete(members),
        "generation": rows.generation,
    }
    if before is not None and before.generation[0] == rows.generation[0]:
        return replace(before, **volatile)
    holders = _holders(rows.holdings, members)
    items = [held[0].item for held in holders.values() if by_id[held[0].backend_id].is_live]
    return Fleet(holders=holders, tags=_listing(ollama.tags(items)), models=_listing(openai.models(items)), **volatile)


def _warm(by_id: Mapping[int, Member], loaded: Iterable[tuple[int, Mapping[str, Any]]]) -> dict[str, frozenset[int]]:
    found: dict[str, set[int]] = {}
    for owner, item in loaded:
        if is_live(by_id, owner):
            with suppress(InvalidModelName):
                found.setdefault(parse_listed(str(item.get("name"))).canonical, set()).add(owner)
    return {canonical: frozenset(owners) for canonical, owners in found.items()}


def _status(members: Sequence[Member]) -> bytes:
    """Switched off only where nobody may use the cloud; then the first one says by what."""
    disabled = bool(members) and not any(member.allows_cloud for member in members)
    sources = (member.health.cloud_source for member in members if disabled)
    return ollama.status(disabled, next((source for source in sources if source), "none"))


def _recommendations(members: Sequence[Member]) -> bytes:
    said = (member.health.recommendations for member in members if member.is_live)
    return next((text.encode() for text in said if text), ollama.NO_RECOMMENDATIONS)


_VERSION = re.compile(r"v?\d{1,9}(\.\d{1,9}){0,3}([-+][0-9A-Za-z.+-]{1,64})?")


def lowest_version(versions: Any) -> str:
    """The lowest of some versions: what every client may rely on. "0.0.0" where nobody is live."""
    known = [version for version in versions if version and _VERSION.fullmatch(version)]
    return min(known, key=_version_key, default="0.0.0")


def _version_key(version: str) -> tuple[tuple[int, ...], bool, str]:
    numbers, _, suffix = version.lstrip("v").partition("-")
    parts = tuple(int(number) for number in re.findall(r"\d{1,9}", numbers))
    # 0.33.0-rc2 comes before 0.33.0.
    return parts, not suffix, suffix


def _is_complete(members: Sequence[Member]) -> bool:
    return bool(members) and all(member.health.state != "unknown" for member in members)


def is_live(by_id: Mapping[int, Member], backend_id: int) -> bool:
    """Is it up? Not where it is no backend any more."""
    return backend_id in by_id and by_id[backend_id].is_live


def _holders(holdings: Sequence[Holding], members: Sequence[Member]) -> dict[str, tuple[Holding, ...]]:
    """Each model's holders: live ones first, those with the best one's digest before others, by config order."""
    place = {member.backend.id: (not member.is_live, at) for at, member in enumerate(members)}
    found: dict[str, list[Holding]] = {}
    for held in sorted((h for h in holdings if h.backend_id in place), key=lambda h: place[h.backend_id]):
        found.setdefault(held.canonical, []).append(held)
    return {canonical: _current_first(group, place) for canonical, group in found.items()}


def _current_first(group: list[Holding], place: Mapping[int, tuple[bool, int]]) -> tuple[Holding, ...]:
    current = group[0].digest
    return tuple(sorted(group, key=lambda held: (place[held.backend_id][0], held.digest != current)))


def _listing(body: bytes) -> Listing:
    return Listing(body, f'"{hashlib.sha256(body).hexdigest()[:32]}"')


def check_seen(fleet: Fleet) -> None:
    """Can this Fleet say that a model it does not know exists nowhere?

    Raises:
        Unavailable: it cannot.
    """
    if not fleet.complete:
        raise Unavailable("Caravan has not seen all its backends yet", retry_after_s=1)
    if fleet.is_dark:
        raise Unavailable("no backend is up")


def all_down(name: ModelName) -> Unavailable:
    """What is said of a model that only dead backends hold."""
    return Unavailable(f"every backend that holds '{name.shortest}' is down")


def all_draining(name: ModelName) -> Unavailable:
    """What is said of a model whose live holders an operator has drained."""
    return Unavailable(f"no backend that holds '{name.shortest}' takes new work: an operator has drained them", 30)


class FleetReloader:
    """Keeps one process's Fleet up to date.

    Owned by: the process's runtime; its thread alone reads the registry, on a native thread, and swaps
    `fleet`. Readers take one reference per request.

    Args:
        on_keys: is called on that thread with the registry whenever something in it changed.
    """

    def __init__(
        self,
        data_dir: Path,
        configured: Sequence[BackendSettings],
        interval_s: float,
        on_keys: Callable[[Registry], None] = lambda _: None,
    ) -> None:
        self.fleet = Fleet()
        self._on_keys = on_keys
        self._data_dir, self._configured, self._interval_s = data_dir, configured, interval_s
        self._native = NativeThread()
        self._registry: Registry | None = None
        self._seen: int | None = None
        self._confirmed_s = time.monotonic()
        self._completed = threading.Event()
        self._complaint = ""
        self._stop = threading.Event()
        self._listeners: list[Callable[[Fleet], None]] = []
        self._thread = threading.Thread(target=self._watch, name="fleet-reloader", daemon=True)

    def start(self) -> None:
        """Load once, so that the first request finds a Fleet, then watch."""
        self._reload()
        self._thread.start()

    def knowing(self, canonical: str) -> Fleet:
        """The Fleet; where it does not know the model and has not seen every backend yet, wait a moment for that
        (this worker may be the last to hear of it)."""
        if canonical not in self.fleet.holders and not self.fleet.complete:
            self._completed.wait(DISCOVERY_S)
        return self.fleet

    @property
    def age_s(self) -> int:
        """Whole seconds since the refresher last showed that it keeps the Fleet current."""
        return int(time.monotonic() - self._confirmed_s)

    def on_change(self, listener: Callable[[Fleet], None]) -> None:
        self._listeners.append(listener)

    def close(self) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(2)
        self._native.run(self._forget_registry)
        self._native.close()

    def _watch(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._reload()
            except Exception:  # the top of a thread: a Fleet that no longer follows is worse than one odd row
                log.exception("the Fleet could not be built; the last one stays")

    def _reload(self) -> None:
        try:
            fresh = self._native.run(self._read)
        except RegistryAway as exc:
            self._native.run(self._forget_registry)
            # Serving goes on with the last Fleet; one line for each new cause.
            if str(exc) != self._complaint:
                log.error("%s", exc)
            self._complaint = str(exc)
            return
        self._complaint = ""
        if fresh is not None and self._is_hollow(fresh):
            self._seen = None
        elif fresh is not None:
            self._swap(fresh)

    def _swap(self, fresh: Fleet) -> None:
        self.fleet = fresh
        if fresh.complete:
            self._completed.set()
        for listener in self._listeners:
            listener(fresh)

    def _is_hollow(self, fresh: Fleet) -> bool:
        """Does it come from a registry that was just made anew, and knows less than we do?

        That passes with the first look at all backends.
        """
        known = {member.backend.url for member in self.fleet.members}
        return not fresh.complete and self.fleet.complete and known >= {m.backend.url for m in fresh.members}

    def _forget_registry(self) -> None:
        """On the native thread. The next look opens it anew: it may have been replaced."""
        registry, self._registry, self._seen = self._registry, None, None
        if registry is not None:
            registry.close()

    def _read(self) -> Fleet | None:
        """On the native thread: a new Fleet, or None where nothing changed."""
        if self._registry is not None and self._registry.is_replaced:
            self._forget_registry()
        if self._registry is None:
            self._registry = Registry(self._data_dir)
        seen = self._registry.data_version()
        if seen == self._seen:
            return None
        fresh = None
        # Another file's generations say nothing of ours.
        before = None if self._seen is None else self.fleet
        if before is None or self._registry.generation() != before.generation:
            fresh = build(self._registry.snapshot(self._configured), before)
        self._on_keys(self._registry)
        self._seen = seen
        self._confirmed_s = time.monotonic()
        return fresh
