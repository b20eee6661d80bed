"""Usage in the registry: one row for each hour, key, model and backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import NamedTuple

from proxy_app.store.registry import Registry


class UsageKey(NamedTuple):
    """What is counted together. Args: hour: its first second, UTC. key_id: "" without a key."""

    hour: int
    key_id: str
    model: str
    backend: str


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums.

    Args:
        errors: requests that did not end well, whoever's fault that is: refusals and hang-ups, too.
        gpu_ms, load_ms: milliseconds.
        estimated: requests whose cost nobody said.
        faults: of the errors, those that are the fleet's.
    """

    requests: int = 0
    errors: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    gpu_ms: int = 0
    load_ms: int = 0
    estimated: int = 0
    faults: int = 0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


_SUMS = tuple(f.name for f in fields(Tally))
_KEYS = ", ".join(UsageKey._fields)
_ADD = (
    f"INSERT INTO usage ({_KEYS}, {', '.join(_SUMS)}) "
    f"VALUES ({', '.join('?' * (len(UsageKey._fields) + len(_SUMS)))}) "
    f"ON CONFLICT ({_KEYS}) DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in _SUMS)}"
)
_GPU = (
    "SELECT hour / :step * :step, key_id, sum(gpu_ms) FROM usage WHERE hour >= :start AND gpu_ms > 0 "
    "GROUP BY 1, 2 ORDER BY 1, 2"
)


class UsageStore:
    """The `usage` table of a registry. Raises: RegistryAway: from every method."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def add(self, tallies: Mapping[UsageKey, Tally], forget_before: int) -> None:
        """Add to what is there, and forget hours before a time (UTC seconds)."""
        with self._registry.writing() as db:
            for key, tally in tallies.items():
                db.execute(_ADD, [*key, *(getattr(tally, name) for name in _SUMS)])
            db.execute("DELETE FROM usage WHERE hour < ?", [forget_before])

    def gpu_ms(self, start: int, step_s: int) -> list[tuple[int, str, int]]:
        """GPU milliseconds of each key: the first second of a step, the key's id, the sum.

        Args:
            start: an hour. step_s: a number of hours.
        """
        with self._registry.reading() as db:
            return db.execute(_GPU, {"start": start, "step": step_s}).fetchall()

    def requests_since(self, start: int) -> int:
        """How many requests were counted from an hour on."""
        with self._registry.reading() as db:
            (count,) = db.execute("SELECT coalesce(sum(requests), 0) FROM usage WHERE hour >= ?", [start]).fetchone()
        return int(count)

    def since(self, start: int) -> list[tuple[UsageKey, Tally]]:
        """All rows from an hour on, oldest first."""
        with self._registry.reading() as db:
            rows = list(db.table("usage").rows_where("hour >= ?", [start], order_by="hour, key_id, model, backend"))
        return [(UsageKey(*(row[n] for n in UsageKey._fields)), Tally(*(row[n] for n in _SUMS))) for row in rows]
