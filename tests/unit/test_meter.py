"""A worker's own meter of requests: as many as a full bucket at once, then as they drip back."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.routing.meter import meter

rates = st.integers(1, 6000)
bursts = st.integers(0, 100)
NOW = 1000.0


def passed(tat_s: float, now_s: float, per_minute: float, burst: float, most: int) -> tuple[int, float, float]:
    """How many pass at one moment; the state after them, and how long the next one waits."""
    for count in range(most + 1):
        found = meter(tat_s, now_s, per_minute, burst)
        if found.wait_s:
            return count, tat_s, found.wait_s
        tat_s = found.tat_s
    return most + 1, tat_s, 0.0


@given(st.integers(1, 200), st.integers(0, 100))
def test_a_full_bucket_passes_at_once_and_not_one_more(per_minute: int, burst: int) -> None:
    count, _, wait_s = passed(0.0, NOW, per_minute, burst, per_minute + burst + 1)
    assert count in (per_minute + burst, per_minute + burst - 1)  # A float's last digit may cost one.
    assert 0 < wait_s <= 2 * 60 / per_minute + 1e-6


@pytest.mark.parametrize(("per_minute", "burst"), [(60, 0), (60, 20), (1, 0), (100, 0), (7, 3)])
def test_the_bucket_of_usual_limits_is_exact(per_minute: int, burst: int) -> None:
    assert passed(0.0, NOW, per_minute, burst, 200)[0] == per_minute + burst


@given(st.integers(1, 200), bursts)
def test_after_the_wait_the_next_one_passes_and_not_before(per_minute: int, burst: int) -> None:
    _, tat_s, wait_s = passed(0.0, NOW, per_minute, burst, per_minute + burst + 1)
    assert not meter(tat_s, NOW + wait_s + 1e-6, per_minute, burst).wait_s
    assert meter(tat_s, NOW + wait_s / 2, per_minute, burst).wait_s > 0


@given(rates, bursts, st.lists(st.floats(0, 5), min_size=1, max_size=60))
def test_no_pattern_gets_more_than_the_rate_and_one_bucket(per_minute: int, burst: int, gaps: list[float]) -> None:
    tat_s, now_s, count = 0.0, NOW, 0
    for gap in gaps:
        now_s += gap
        found = meter(tat_s, now_s, per_minute, burst)
        tat_s, count = found.tat_s, count + (not found.wait_s)
    assert count <= per_minute + burst + math.ceil((now_s - NOW) * per_minute / 60) + 1


@given(rates, bursts)
def test_a_refusal_changes_nothing(per_minute: int, burst: int) -> None:
    full = NOW + 60 / per_minute * (per_minute + burst)
    found = meter(full, NOW, per_minute, burst)
    assert found.wait_s > 0
    assert (found.tat_s, found.left) == (full, 0)


@given(rates, bursts, st.floats(1, 100))
def test_what_is_left_counts_down(per_minute: int, burst: int, cost: float) -> None:
    found = meter(0.0, NOW, per_minute, burst, cost)
    assert found.left == pytest.approx(max(0.0, per_minute + burst - cost), abs=1.001)


def test_what_costs_more_than_a_bucket_passes_an_empty_meter() -> None:
    """Else it never would."""
    assert not meter(0.0, NOW, 10, 0, cost=1000).wait_s


@pytest.mark.parametrize("per_minute", [0.25, 0.5])
def test_a_share_of_less_than_one_lets_one_pass(per_minute: float) -> None:
    """One request a minute over four workers."""
    first = meter(0.0, NOW, per_minute, 0)
    assert not first.wait_s
    assert meter(first.tat_s, NOW, per_minute, 0).wait_s > 0
