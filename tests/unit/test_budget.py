"""How many further attempts a fleet that is not well gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.routing.budget import LEAST, may_retry
from proxy_app.services.retries import RetryBudget

counts = st.integers(0, 10_000)


@pytest.mark.parametrize(
    ("active", "share", "allowed"),
    [(0, 20, 3), (1, 20, 3), (15, 20, 3), (19, 20, 3), (20, 20, 4), (50, 20, 10), (50, 0, 3), (50, 100, 50)],
)
def test_it_is_a_share_of_what_is_under_way_and_at_least_three(active: int, share: int, allowed: int) -> None:
    assert may_retry(allowed - 1, active, share)
    assert not may_retry(allowed, active, share)


@given(counts, counts, st.integers(0, 100))
def test_one_more_under_way_never_takes_a_retry_away(retrying: int, active: int, share: int) -> None:
    assert may_retry(retrying, active + 1, share) >= may_retry(retrying, active, share)
    assert may_retry(retrying, active, share) >= may_retry(retrying + 1, active, share)


@given(st.integers(1, 500), st.integers(0, 100))
def test_all_who_ask_at_once_get_no_more_than_that(active: int, share: int) -> None:
    retrying = 0
    for _ in range(active):
        retrying += may_retry(retrying, active, share)
    assert retrying == min(active, max(LEAST, active * share // 100))


def test_a_worker_counts_what_is_under_way_and_nothing_else() -> None:
    budget = RetryBudget(20)
    with budget.request(), budget.retry(counts=True), budget.retry(counts=True), budget.retry(counts=False):
        assert (budget.active, budget.retrying) == (1, 2)
        assert budget.allows()
        with budget.retry(counts=True):
            assert not budget.allows()
        assert budget.allows()
    assert (budget.active, budget.retrying) == (0, 0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_fails_gives_its_place_back(error: type[BaseException]) -> None:
    budget = RetryBudget(20)
    with pytest.raises(error), budget.request(), budget.retry(counts=True):
        raise error
    assert (budget.active, budget.retrying) == (0, 0)
