"""What a worker's requests came to: each of the last ones, and the sums of each minute. Prompts and answers are not."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from proxy_app.dialects.usage import Spent, sane
from proxy_app.domain.histogram import bucket_of
from proxy_app.services.bookkeeper import Bookkeeper
from proxy_app.services.explanation import LOAD_MS, explanation
from proxy_app.services.running import Run
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.traffic import RequestRow, Sums, TrafficStore

# Somebody looks at them while they happen.
WRITE_S = 2.0
MINUTE_S = 60
# What is written of one batch, newest first: far more than anybody can look at. The sums know all of them.
MOST = 1_000
# Minutes that wait while the registry is away: a day.
MOST_MINUTES = 1_440


class Over(NamedTuple):
    """A request that is over. Args: at: when, UTC seconds. total_s: how long it took."""

    run: Run
    spent: Spent
    at: float
    total_s: float


@dataclass(slots=True)
class Noted:
    """What was gathered since the last time. Args: minutes: by their first seconds, UTC."""

    ended: deque[Over] = field(default_factory=lambda: deque(maxlen=MOST))
    minutes: dict[int, Sums] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ended)

    def sums(self, minute: int) -> Sums:
        found = self.minutes.get(minute)
        if found is None:
            if len(self.minutes) >= MOST_MINUTES:
                del self.minutes[min(self.minutes)]
            found = self.minutes[minute] = Sums()
        return found


class TrafficBook(Bookkeeper[Noted]):
    """One worker's account of its traffic."""

    def __init__(self, data_dir: Path) -> None:
        super().__init__("traffic", WRITE_S, data_dir)
        self._noted = Noted()

    def note(self, run: Run, spent: Spent) -> None:
        """One request is over."""
        now, trace = unix_now(), run.trace
        self._noted.ended.append(Over(run, spent, now, trace.elapsed_s))
        sums = self._noted.sums(int(now) // MINUTE_S * MINUTE_S)
        sums.requests += 1
        sums.errors += trace.is_fault
        sums.tokens_out += sane(spent.tokens_out)
        sums.loads += spent.load_ms >= LOAD_MS
        if spent.out_ms > 0:
            sums.timed_tokens += sane(spent.tokens_out)
            sums.out_ms += sane(spent.out_ms)
        if trace.first_byte_s is not None:
            sums.waits[bucket_of(trace.first_byte_s)] += 1

    def _take(self) -> Noted:
        noted, self._noted = self._noted, Noted()
        return noted

    def _write(self, registry: Registry, taken: Noted) -> None:
        TrafficStore(registry).add(map(_row, taken.ended), taken.minutes, unix_now())

    def _give_back(self, taken: Noted) -> None:
        newer, self._noted = self._noted, taken
        taken.ended.extend(newer.ended)
        for minute, sums in newer.minutes.items():
            taken.sums(minute).add(sums)


def _row(over: Over) -> RequestRow:
    trace, spent = over.run.trace, over.spent
    return RequestRow(
        id=over.run.id,
        request_id=trace.request_id,
        at=over.at,
        route=trace.route,
        model=trace.named,
        key_id=trace.key_id,
        status=trace.status,
        outcome=trace.outcome,
        attempts=tuple(trace.attempts),
        first_byte_s=trace.first_byte_s,
        total_s=over.total_s,
        load_ms=sane(spent.load_ms),
        tokens_in=sane(spent.tokens_in),
        tokens_out=sane(spent.tokens_out),
        tokens_per_s=spent.tokens_out * 1000 / spent.out_ms if spent.tokens_out and spent.out_ms > 0 else None,
        explanation=explanation(trace, spent),
    )
