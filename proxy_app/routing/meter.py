"""The rate limit of one worker that is on its own: GCRA, the leaky bucket as a meter. Pure.

The shared form of the same is `store/scripts/limits.lua`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metered:
    """What follows for one request. Args: tat_s: the meter's new state. wait_s: 0 where it may pass."""

    tat_s: float
    wait_s: float
    left: int


def meter(tat_s: float, now_s: float, per_minute: float, burst: float, cost: float = 1.0) -> Metered:
    """Let a request pass, or say when the next one will.

    Args:
        tat_s: the theoretical arrival time of the next request, 0 at first.
        per_minute, burst: a full bucket has both together.
    """
    interval = 60.0 / per_minute
    capacity_s = interval * (per_minute + burst)
    after = max(tat_s, now_s) + interval * min(cost, per_minute + burst)
    wait_s = after - capacity_s - now_s
    # A microsecond is the shared meter's unit; below it there are only the errors of floats.
    if wait_s > 1e-6:
        return Metered(tat_s, wait_s, 0)
    return Metered(after, 0.0, int((capacity_s - (after - now_s)) / interval))
