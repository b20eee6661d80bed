"""When a backend is skipped because requests to it just failed. Pure: `now` comes in, a new value goes out.

closed --(5 failures in a row, or one refused connection)--> open --(time is up)--> one real request is let through
--(it succeeds)--> closed, --(it fails)--> open for twice as long.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

# A refused connection costs a client nothing to try again, and an Ollama that restarts is back within seconds.
REFUSED_SHARE = 0.2
LONGEST = 12


@dataclass(frozen=True, slots=True)
class BreakerRules:
    """Args: failures: in a row, until it opens. open_s: for how long at first."""

    failures: int = 5
    open_s: float = 5.0


@dataclass(frozen=True, slots=True)
class Breaker:
    """One backend's breaker.

    Args:
        failures: in a row, since the last success.
        openings: in a row; each doubles the time.
        open_until, opened_at: on the caller's clock.
        trying_until: a real request is on its way through a half-open breaker; if it never reports, the next
            one may go then.
    """

    failures: int = 0
    openings: int = 0
    opened_at: float = 0.0
    open_until: float = 0.0
    trying_until: float = 0.0

    @property
    def is_closed(self) -> bool:
        return self.openings == 0

    def allows(self, now: float) -> bool:
        """May a request go there? A half-open breaker takes one at a time."""
        return self.is_closed or (now >= self.open_until and now >= self.trying_until)


CLOSED = Breaker()


def tried(breaker: Breaker, now: float, patience_s: float) -> Breaker:
    """A request is on its way: no other one goes through a half-open breaker until it reports."""
    return breaker if breaker.is_closed else replace(breaker, trying_until=now + patience_s)


def failed(breaker: Breaker, now: float, rules: BreakerRules, *, refused: bool) -> Breaker:
    """A request failed in a way that counts against the backend.

    While the breaker is open, failures are those of requests that were on their way before: they say nothing new.
    """
    if not breaker.is_closed and now < breaker.open_until:
        return breaker
    failures = breaker.failures + 1
    if breaker.is_closed and not refused and failures < rules.failures:
        return replace(breaker, failures=failures)
    if refused:
        open_s = rules.open_s * min(1.0, REFUSED_SHARE * 2**breaker.openings)
    else:
        open_s = rules.open_s * min(LONGEST, 2**breaker.openings)
    openings = min(breaker.openings + 1, 10)
    return Breaker(failures=failures, openings=openings, opened_at=now, open_until=now + open_s)
