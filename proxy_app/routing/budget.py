"""How many further attempts a fleet that is not well gets. Pure.

Without a bound every request to a fleet in which everybody fails becomes three: an overload that feeds itself. Envoy's
retry budget is the model (circuit_breaker.proto: budget_percent 20, min_retry_concurrency 3). An attempt at a backend
whose last answer was good is no part of the storm and costs nothing, so that one dead backend of two never costs a
client its answer.
"""

from __future__ import annotations

LEAST = 3


def may_retry(retrying: int, active: int, share: int) -> bool:
    """May one more attempt that is not a request's first go to a backend whose last answer was no good?

    Args:
        retrying: such attempts under way.
        active: requests under way.
        share: of them, in percent.
    """
    return retrying < max(LEAST, active * share // 100)
