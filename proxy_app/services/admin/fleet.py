"""The fleet as an operator sees it: every backend with what it does right now, and what is odd about all of them."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from proxy_app.domain import Fleet, Member
from proxy_app.routing.versions import is_older
from proxy_app.services.admin.said import number
from proxy_app.services.admin.shapes import BackendView, FleetView, LoadedModel, Notice
from proxy_app.services.breakers import Breakers
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.fleet import FleetReloader
from proxy_app.services.usage import HOUR_S
from proxy_app.settings import Settings
from proxy_app.store.backends import BackendStore
from proxy_app.store.leases import LeaseKeeper
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import STALE_S, Registry
from proxy_app.store.usage import Tally, UsageStore

# So many names stand in one notice; the rest is a number.
NAMED = 5
# A backend that had so many requests in the hour, and spent more than this share of its time on loads.
STORM_REQUESTS, STORM_SHARE = 20, 0.5


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the registry says beside the Fleet, and what is counted over all of it.

    Args:
        alone: the models that one live backend holds and no other one, by its id.
    """

    in_flight: Mapping[int, int]
    held: Mapping[int, int]
    alone: Mapping[int, list[str]]
    loaded: Mapping[int, list[dict[str, Any]]]
    used: Mapping[str, Tally]
    beat_age_s: float | None


@dataclass(frozen=True, slots=True)
class FleetDesk:
    """Owned by: the worker's runtime."""

    settings: Settings
    reloader: FleetReloader
    desk: RegistryDesk
    leases: LeaseKeeper
    breakers: Breakers

    def view(self) -> FleetView:
        """All backends. Raises: RegistryAway."""
        fleet = self.reloader.fleet
        seen = self._look(fleet)
        backends = [self._backend(member, seen) for member in fleet.members]
        return FleetView(at=unix_now(), backends=backends, notices=list(self._notices(fleet, seen)))

    def backend(self, member: Member) -> BackendView:
        """One of them. Raises: RegistryAway."""
        return self._backend(member, self._look(self.reloader.fleet))

    def _look(self, fleet: Fleet) -> _Seen:
        in_flight = self.leases.totals(list(fleet.by_id))
        loaded, used, beat_age_s = self.desk.run(_read)
        return _Seen(in_flight, _held(fleet), _alone(fleet), loaded, used, beat_age_s)

    def _backend(self, member: Member, seen: _Seen) -> BackendView:
        backend, health = member.backend, member.health
        used = seen.used.get(backend.name, Tally())
        return BackendView(
            id=backend.id,
            name=backend.name,
            url=backend.url,
            origin=backend.origin,
            priority=backend.priority,
            slots=backend.slots,
            cloud=backend.cloud,
            state=health.state,
            since=health.since,
            error=health.error,
            version=health.version,
            latency_s=health.latency_s,
            draining=backend.draining,
            in_flight=seen.in_flight.get(backend.id, 0),
            breaker=self.breakers.state(backend.id),
            models=seen.held.get(backend.id, 0),
            alone=seen.alone.get(backend.id, []),
            loaded=[_loaded(item) for item in seen.loaded.get(backend.id, [])] if member.is_live else [],
            tokens_per_s=used.tokens_out / (used.gpu_ms / 1000) if used.gpu_ms and used.tokens_out else None,
            requests=used.requests,
            errors=used.faults,
            has_token=backend.auth_token is not None,
            header_names=[name for name, _ in backend.headers],
        )

    # -- what is odd -------------------------------------------------------------------------------

    def _notices(self, fleet: Fleet, seen: _Seen) -> Iterator[Notice]:
        yield from self._of_ourselves(seen)
        if not fleet.members:
            text = "There is no backend yet. Add one here, or name some in OLLAMA_BACKENDS."
            yield Notice(kind="no-backend", level="error", text=text)
        elif fleet.is_dark:
            yield Notice(kind="no-backend", level="error", text="No backend is up: every request is refused.")
        yield from self._of_versions(fleet)
        yield from _of_holders(fleet, seen)
        yield from _of_loads(seen)

    def _of_ourselves(self, seen: _Seen) -> Iterator[Notice]:
        if not self.leases.is_shared:
            text = (
                "Redis is away: each worker keeps to its share of the limits, and the show cache is each worker's own."
            )
            yield Notice(kind="redis-away", level="warning", text=text)
        if seen.beat_age_s is None or seen.beat_age_s > STALE_S:
            text = "No refresher runs: what you see may be old. A worker starts one within seconds, where it can."
            yield Notice(kind="refresher-away", level="error", text=text)

    def _of_versions(self, fleet: Fleet) -> Iterator[Notice]:
        live = [member for member in fleet.members if member.is_live and member.health.version]
        versions = {member.health.version for member in live}
        if len(versions) > 1:
            text = (
                f"Backends run different versions of Ollama ({_some(sorted(map(str, versions)))}): answers may differ."
            )
            yield Notice(kind="version-skew", level="info", text=text, subjects=_names(live))
        safe = self.settings.safe_version
        old = [member for member in live if is_older(member.health.version, safe)]
        if old:
            text = f"{_some(_names(old))}: an Ollama below {safe} has a known hole. Update it."
            yield Notice(kind="old-version", level="warning", text=text, subjects=_names(old))


def _of_holders(fleet: Fleet, seen: _Seen) -> Iterator[Notice]:
    drifted = fleet.drifted()
    if drifted:
        backends = sorted({name for names in drifted.values() for name in names})
        text = f"{_some(sorted(drifted))}: not the same everywhere. Pull again on {_some(backends)}."
        yield Notice(kind="digest-drift", level="warning", text=text, subjects=sorted(drifted))
    if sum(member.is_live for member in fleet.members) < 2:
        return
    lonely = [name for names in seen.alone.values() for name in names]
    if lonely:
        text = f"Held by one backend only, and gone with it: {_some(sorted(lonely))}."
        yield Notice(kind="one-holder", level="info", text=text, subjects=sorted(lonely))


def _of_loads(seen: _Seen) -> Iterator[Notice]:
    """Models that push each other out of memory: most of what the GPUs do is then loading."""
    for name, used in seen.used.items():
        busy_ms = used.gpu_ms + used.load_ms
        if used.requests >= STORM_REQUESTS and busy_ms and used.load_ms / busy_ms > STORM_SHARE:
            share = 100 * used.load_ms / busy_ms
            text = (
                f"{name} spends {share:.0f} % of its time on loading models. Keep fewer models there, or more memory."
            )
            yield Notice(kind="reload-storm", level="warning", text=text, subjects=[name])


def _read(registry: Registry) -> tuple[dict[int, list[dict[str, Any]]], dict[str, Tally], float | None]:
    """What is loaded where, what was used in this hour, and how old the refresher's last beat is."""
    loaded = defaultdict(list)
    for backend_id, item in BackendStore(registry).loaded():
        loaded[backend_id].append(item)
    used: dict[str, Tally] = defaultdict(Tally)
    for key, tally in UsageStore(registry).since(int(unix_now()) // HOUR_S * HOUR_S):
        used[key.backend] += tally
    return loaded, used, registry.beat_age_s(time.monotonic())


def _alone(fleet: Fleet) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    for canonical in fleet.holders:
        live = fleet.live_holders(canonical)
        if len(live) == 1:
            found[live[0].backend_id].append(live[0].name)
    return found


def _held(fleet: Fleet) -> dict[int, int]:
    found: dict[int, int] = defaultdict(int)
    for holdings in fleet.holders.values():
        for held in holdings:
            found[held.backend_id] += 1
    return found


def _loaded(item: Mapping[str, Any]) -> LoadedModel:
    numbers = {key: number(item.get(key)) for key in ("size", "size_vram", "context_length")}
    expires_at = item.get("expires_at")
    return LoadedModel(name=str(item.get("name", "")), expires_at=str(expires_at) if expires_at else None, **numbers)


def _names(members: list[Member]) -> list[str]:
    return [member.backend.name for member in members]


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(names[:NAMED]) + (f" and {more} more" if more > 0 else "")
