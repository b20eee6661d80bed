"""Traffic in the registry: the last finished requests, and one row of sums for each minute."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from proxy_app.domain.histogram import BUCKETS
from proxy_app.store.registry import Registry

# What people look back at one by one; a busy fleet has more in a minute.
KEPT_REQUESTS, KEPT_REQUESTS_S = 5_000, 86_400
# The longest chart, and one step more. Seconds.
KEPT_MINUTES_S = 31 * 86_400


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One finished request.

    Args:
        id: its own, never the same twice. request_id: the log's, which a client may have chosen.
        at: when it ended, UTC seconds.
        attempts: names of backends, in order.
        tokens_per_s: of its answer. None: nobody knows.
    """

    id: str
    request_id: str
    at: float
    route: str
    model: str
    key_id: str
    status: int
    outcome: str
    attempts: tuple[str, ...]
    first_byte_s: float | None
    total_s: float
    load_ms: int
    tokens_in: int
    tokens_out: int
    tokens_per_s: float | None
    explanation: str


@dataclass(slots=True)
class Sums:
    """What happened in a minute, or in several.

    Args:
        errors: requests that the fleet failed.
        timed_tokens, out_ms: tokens of which it is known how long they took, and how long that was (milliseconds).
        loads: requests that waited a second or longer for their model to be loaded.
        waits: for a first byte; see `domain.histogram`.
    """

    requests: int = 0
    errors: int = 0
    tokens_out: int = 0
    timed_tokens: int = 0
    out_ms: int = 0
    loads: int = 0
    waits: list[int] = field(default_factory=lambda: [0] * BUCKETS)

    @classmethod
    def of(cls, numbers: Sequence[int]) -> Sums:
        """Of the columns of `minutes`, in their order."""
        plain = dict(zip(_PLAIN, numbers, strict=False))
        return cls(waits=list(numbers[len(plain) :]), **plain)

    def add(self, other: Sums) -> None:
        for name in _PLAIN:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.waits = [one + more for one, more in zip(self.waits, other.waits, strict=True)]


_ROW = tuple(f.name for f in fields(RequestRow))
_PLAIN = tuple(f.name for f in fields(Sums) if f.name != "waits")
_SUMS = (*_PLAIN, *(f"w{number}" for number in range(BUCKETS)))
# A batch whose commit nobody heard of comes again.
_INSERT = f"INSERT OR IGNORE INTO requests ({', '.join(_ROW)}) VALUES ({', '.join('?' * len(_ROW))})"
_ADD = (
    f"INSERT INTO minutes (minute, {', '.join(_SUMS)}) VALUES ({', '.join('?' * (1 + len(_SUMS)))}) "
    f"ON CONFLICT (minute) DO UPDATE SET {', '.join(f'{name} = {name} + excluded.{name}' for name in _SUMS)}"
)
_SHORTEN = "DELETE FROM requests WHERE at < ? OR number <= (SELECT max(number) FROM requests) - ?"
_STEPS = (
    f"SELECT minute / :step * :step, {', '.join(f'sum({name})' for name in _SUMS)} "
    "FROM minutes WHERE minute >= :start GROUP BY 1 ORDER BY 1"
)


class TrafficStore:
    """The tables `requests` and `minutes` of a registry. Raises: RegistryAway: from every method."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def add(self, ended: Iterable[RequestRow], minutes: Mapping[int, Sums], now: float) -> None:
        """Add to what is there, and forget what is too old.

        Args:
            minutes: by their first seconds, UTC.
            now: UTC seconds.
        """
        with self._registry.writing() as db:
            for row in ended:
                db.execute(_INSERT, _values(row))
            for minute, sums in minutes.items():
                db.execute(_ADD, [minute, *(getattr(sums, name) for name in _PLAIN), *sums.waits])
            db.execute(_SHORTEN, [now - KEPT_REQUESTS_S, KEPT_REQUESTS])
            db.execute("DELETE FROM minutes WHERE minute < ?", [int(now) - KEPT_MINUTES_S])

    def newest(self) -> int:
        """The number of the request that was written last; 0 where there is none."""
        with self._registry.reading() as db:
            (number,) = db.execute("SELECT coalesce(max(number), 0) FROM requests").fetchone()
        return int(number)

    def last(self, limit: int) -> list[RequestRow]:
        """The last requests that ended, newest first."""
        with self._registry.reading() as db:
            return [_row(found) for found in db.table("requests").rows_where(order_by="at DESC", limit=limit)]

    def steps(self, start: int, step_s: int) -> dict[int, Sums]:
        """What happened from a time on (UTC seconds), by the first second of each step in which anything did.

        Args:
            step_s: a multiple of a minute.
        """
        with self._registry.reading() as db:
            found = db.execute(_STEPS, {"start": start, "step": step_s}).fetchall()
        return {at: Sums.of(numbers) for at, *numbers in found}


def _values(row: RequestRow) -> list[Any]:
    return [json.dumps(row.attempts) if name == "attempts" else getattr(row, name) for name in _ROW]


def _row(found: Mapping[str, Any]) -> RequestRow:
    known = {name: found[name] for name in _ROW}
    return RequestRow(**{**known, "attempts": tuple(json.loads(found["attempts"]))})
