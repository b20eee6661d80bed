"""Charts: steps that suit a span, and GPU time that is known by the hour alone."""

from __future__ import annotations

import pytest

from proxy_app.domain.histogram import BUCKETS
from proxy_app.services.admin.shapes import GpuPoint
from proxy_app.services.admin.traffic import (
    MAX_SPAN_S,
    MIN_SPAN_S,
    MOST_POINTS,
    gpu_points,
    gpu_step_of,
    point,
    step_of,
)
from proxy_app.services.usage import HOUR_S
from proxy_app.store.traffic import Sums

DAY_S = 24 * HOUR_S
HOUR = 1_790_000_000 // HOUR_S * HOUR_S


@pytest.mark.parametrize(
    ("span_s", "step_s"),
    [(HOUR_S, 60), (3 * HOUR_S, 120), (6 * HOUR_S, 300), (DAY_S, 600), (7 * DAY_S, 7200), (30 * DAY_S, 21600)],
)
def test_a_span_has_its_step(span_s: int, step_s: int) -> None:
    assert step_of(span_s) == step_s


def test_no_span_has_too_many_points_or_odd_steps() -> None:
    for span_s in range(MIN_SPAN_S, MAX_SPAN_S + 1, 977):
        step_s = step_of(span_s)
        assert 20 <= span_s / step_s <= MOST_POINTS
        assert HOUR_S % step_s == 0 or (step_s % HOUR_S == 0 and DAY_S % step_s == 0)


@pytest.mark.parametrize(("step_s", "gpu_step_s"), [(60, HOUR_S), (HOUR_S, HOUR_S), (21600, 21600)])
def test_gpu_time_has_no_step_below_an_hour(step_s: int, gpu_step_s: int) -> None:
    assert gpu_step_of(step_s) == gpu_step_s


def test_gpu_time_of_an_hour_is_one_point() -> None:
    found = gpu_points([(HOUR, "k", 6_000), (HOUR, "", 60_000)], range(HOUR - HOUR_S, HOUR + HOUR_S, HOUR_S))
    assert found == [GpuPoint(at=HOUR - HOUR_S), GpuPoint(at=HOUR, gpu_s={"k": 6.0, "": 60.0})]


def test_a_point_of_nothing_says_so() -> None:
    found = point(HOUR, Sums())
    assert (found.requests, found.tokens_per_s, found.first_byte_p50) == (0, 0.0, None)


def test_a_point_counts_the_speed_of_tokens_whose_time_is_known() -> None:
    waits = [0] * BUCKETS
    waits[20] = 4
    found = point(HOUR, Sums(4, 1, tokens_out=500, timed_tokens=300, out_ms=2_000, loads=2, waits=waits))
    assert (found.requests, found.errors, found.loads, found.tokens_per_s) == (4, 1, 2, 150.0)
    assert found.first_byte_p50 is not None
    assert found.first_byte_p99 is not None
    assert 0.7 < found.first_byte_p50 < found.first_byte_p99 <= 1.03
