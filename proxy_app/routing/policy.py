"""Who may serve a request, and in which order. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

from proxy_app.domain import Fleet, Holding, Member

Tier = tuple[int, ...]
"""Ids of backends that are equally good; load decides between them."""


def hosts(fleet: Fleet, canonical: str) -> list[Tier]:
    """Who hosts the model, is alive and takes work: best first, holders of another digest last."""
    live = [held for held in fleet.live_holders(canonical) if fleet.by_id[held.backend_id].takes_work]
    current = fleet.digest(canonical)
    drifted: Callable[[Holding], bool] = lambda held: held.digest != current  # noqa: E731
    tiers: list[Tier] = []
    for _, group in groupby(live, drifted):
        tiers += _tiers(fleet.by_id[held.backend_id] for held in group)
    return tiers


def cloud_hosts(fleet: Fleet) -> list[Tier]:
    """Who is alive, takes work and may use Ollama's cloud: in config order."""
    return _tiers(member for member in fleet.members if member.takes_work and member.allows_cloud)


def skip_broken(
    tiers: Sequence[Tier], is_open: Callable[[int], bool], recovers_at: Callable[[int], float]
) -> list[Tier]:
    """Take those with an open breaker out; where that leaves nobody, the one that recovers first is tried."""
    closed = [tuple(i for i in tier if not is_open(i)) for tier in tiers]
    kept = [tier for tier in closed if tier]
    everybody = [i for tier in tiers for i in tier]
    if kept or not everybody:
        return kept
    return [(min(everybody, key=recovers_at),)]


def _tiers(members: Iterable[Member]) -> list[Tier]:
    grouped = groupby(members, lambda member: member.backend.priority)
    return [tuple(member.backend.id for member in group) for _, group in grouped]
