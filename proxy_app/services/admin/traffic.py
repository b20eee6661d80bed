"""What the admin page shows of the traffic: what runs, what has ended, and charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path

from proxy_app.domain.histogram import percentile
from proxy_app.services.admin.in_flight import InFlight
from proxy_app.services.admin.shapes import ChartView, Finished, Point, Running
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.usage import HOUR_S
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.traffic import RequestRow, Sums, TrafficStore
from proxy_app.store.usage import UsageStore

# What a page waits for another process that writes.
BUSY_S = 0.05
MIN_SPAN_S, MAX_SPAN_S = 3_600, 30 * 86_400
# More cannot be told apart on a screen.
MOST_POINTS = 150
# Each divides an hour, or is hours that divide a day. Seconds.
STEPS_S = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 14400, 21600)


class Traffic:
    """Owned by: the worker's runtime. Reads the registry on a native thread of its own."""

    def __init__(self, in_flight: InFlight, data_dir: Path) -> None:
        self._in_flight, self._desk = in_flight, RegistryDesk(data_dir, BUSY_S)

    def start(self) -> None:
        self._in_flight.start()

    def close(self) -> None:
        self._in_flight.close()
        self._desk.close()

    def running(self) -> tuple[list[Running], bool]:
        """What runs now, newest first; and whether that is only this worker's, since Redis is away."""
        return self._in_flight.running()

    def cancel(self, run_id: str) -> bool:
        """End a running request. False: nobody has it (any more).

        Args:
            run_id: `Running.id`.
        """
        return self._in_flight.cancel(run_id)

    def finished(self, limit: int = 100) -> list[Finished]:
        """What has ended, newest first, up to some seconds ago.

        Raises:
            RegistryAway: nobody knows now.
        """
        return [_finished(row) for row in self._desk.run(lambda registry: TrafficStore(registry).last(limit))]

    def chart(self, span_s: float) -> ChartView:
        """The time up to now, in steps that suit its length. The last step is not over.

        Args:
            span_s: an hour to 30 days; what is outside is cut to that.

        Raises:
            RegistryAway: nobody knows now.
        """
        span = int(min(max(span_s, MIN_SPAN_S), MAX_SPAN_S))
        step_s, now = step_of(span), int(unix_now())
        last = now // step_s * step_s
        times = range(last - (span // step_s - 1) * step_s, last + 1, step_s)
        sums, gpu = self._desk.run(partial(_charted, start=times[0], step_s=step_s))
        gpu_s = gpu_by_step(gpu, step_s, now, {at: step.requests for at, step in sums.items()})
        return ChartView(
            span_s=span, step_s=step_s, points=[point(at, sums.get(at, Sums()), gpu_s.get(at, {})) for at in times]
        )


def step_of(span_s: int) -> int:
    """The shortest step with which a chart has not too many points. Seconds."""
    return next((step for step in STEPS_S if span_s <= step * MOST_POINTS), STEPS_S[-1])


def point(at: int, sums: Sums, gpu_s: Mapping[str, float]) -> Point:
    p50, p95, p99 = (percentile(sums.waits, percent) for percent in (50, 95, 99))
    return Point(
        at=at,
        requests=sums.requests,
        errors=sums.errors,
        tokens_per_s=sums.timed_tokens * 1000 / sums.out_ms if sums.out_ms else 0.0,
        loads=sums.loads,
        first_byte_p50=p50,
        first_byte_p95=p95,
        first_byte_p99=p99,
        gpu_s=dict(gpu_s),
    )


def gpu_by_step(
    gpu: Iterable[tuple[int, str, int]], step_s: int, now: int, requests: Mapping[int, int]
) -> dict[int, dict[str, float]]:
    """GPU seconds by step and key. Only the sum of an hour is known: of steps within it each gets a share of that, as
    it had of the hour's requests.

    Args:
        gpu: the first second of an hour, or of a longer step; a key's id; milliseconds.
        now: UTC seconds; of the present hour, only the steps that have begun get something.
        requests: how many ended, by step.
    """
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for start, key_id, ms in gpu:
        steps = [at for at in range(start, start + HOUR_S, step_s) if at <= now] or [start]
        total = sum(requests.get(at, 0) for at in steps)
        for at in steps:
            share = requests.get(at, 0) / total if total else 1 / len(steps)
            if share:
                found[at][key_id] = ms / 1000 * share
    return found


def _charted(registry: Registry, start: int, step_s: int) -> tuple[dict[int, Sums], list[tuple[int, str, int]]]:
    # From the beginning of its hour, by which GPU time is known.
    start = start // HOUR_S * HOUR_S
    return TrafficStore(registry).steps(start, step_s), UsageStore(registry).gpu_ms(start, max(step_s, HOUR_S))


def _finished(row: RequestRow) -> Finished:
    return Finished(
        id=row.id,
        request_id=row.request_id,
        at=row.at,
        route=row.route,
        model=row.model,
        key=row.key_id,
        status=row.status,
        outcome=row.outcome,
        attempts=list(row.attempts),
        backend=row.attempts[-1] if row.attempts else None,
        first_byte_s=row.first_byte_s,
        total_s=row.total_s,
        load_s=row.load_ms / 1000 if row.load_ms else None,
        tokens_in=row.tokens_in,
        tokens_out=row.tokens_out,
        tokens_per_s=row.tokens_per_s,
        explanation=row.explanation,
    )
