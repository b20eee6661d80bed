"""What the admin page shows of the traffic: what runs, what has ended, and charts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from functools import partial
from pathlib import Path

from proxy_app.domain.histogram import percentile
from proxy_app.services.admin.in_flight import InFlight
from proxy_app.services.admin.shapes import ChartView, Finished, GpuPoint, Point, Running
from proxy_app.services.desk import RegistryDesk
from proxy_app.services.relayed import is_fault
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
        # From the beginning of the step in which the first point is.
        gpu_step_s = gpu_step_of(step_s)
        gpu_times = range(times[0] // gpu_step_s * gpu_step_s, last + 1, gpu_step_s)
        sums, gpu = self._desk.run(partial(_charted, times=times, gpu_times=gpu_times))
        return ChartView(
            span_s=span,
            step_s=step_s,
            points=[point(at, sums.get(at, Sums())) for at in times],
            gpu_step_s=gpu_step_s,
            gpu_points=gpu_points(gpu, gpu_times),
        )


def step_of(span_s: int) -> int:
    """The shortest step with which a chart has not too many points. Seconds."""
    return next((step for step in STEPS_S if span_s <= step * MOST_POINTS), STEPS_S[-1])


def point(at: int, sums: Sums) -> Point:
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
    )


def gpu_step_of(step_s: int) -> int:
    """The step of GPU time, which is known by the hour: what an hour's minutes had of it, nobody can say. Seconds."""
    return max(step_s, HOUR_S)


def gpu_points(gpu: Iterable[tuple[int, str, int]], times: Iterable[int]) -> list[GpuPoint]:
    """GPU seconds by key, one point for each of these times.

    Args:
        gpu: the first second of a step; a key's id; milliseconds.
    """
    found: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for start, key_id, ms in gpu:
        found[start][key_id] = ms / 1000
    return [GpuPoint(at=at, gpu_s=found.get(at, {})) for at in times]


def _charted(registry: Registry, times: range, gpu_times: range) -> tuple[dict[int, Sums], list[tuple[int, str, int]]]:
    sums = TrafficStore(registry).steps(times.start, times.step)
    return sums, UsageStore(registry).gpu_ms(gpu_times.start, gpu_times.step)


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
        is_fault=is_fault(row.status, row.outcome),
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
