"""The clocks at two moments, and what happened between them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench import cpu
from bench.wire import BadAnswer


@dataclass(slots=True)
class Sample:
    """The clocks at one moment."""

    at_ns: int
    cpu_s: dict[str, float]

    @classmethod
    def now(cls, watch: Mapping[str, list[int]]) -> Sample:
        used = {role: cpu.used_s(pids) for role, pids in watch.items()}
        used["load"] = cpu.process_s(os.getpid())
        used["busy"], used["machine"] = cpu.machine_s()
        return cls(time.monotonic_ns(), used)

    def since(self, begin: Sample) -> dict[str, float]:
        return {role: used - begin.cpu_s[role] for role, used in self.cpu_s.items()}


def quantile(ordered: list[int], share: float) -> float:
    """In µs, of nanoseconds in order."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e3


def summary(events: list[tuple[int, int]], begin: Sample, end: Sample) -> dict[str, Any]:
    """Rate, delays and CPU of what happened in a window. `events`: moment and delay of each."""
    delays = sorted(delay for at, delay in events if begin.at_ns <= at < end.at_ns)
    if not delays:
        raise BadAnswer("nothing was answered")
    seconds = (end.at_ns - begin.at_ns) / 1e9
    return {
        "count": len(delays),
        "seconds": seconds,
        "rate": len(delays) / seconds,
        "p50_us": quantile(delays, 0.50),
        "p95_us": quantile(delays, 0.95),
        "p99_us": quantile(delays, 0.99),
        "cpu_s": end.since(begin),
    }
