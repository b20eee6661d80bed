"""Times in buckets: every time has one, and percentiles are as good as the buckets are narrow."""

from __future__ import annotations

import random

import pytest

from proxy_app.domain.histogram import BUCKETS, FIRST_S, PER_OCTAVE, bucket_of, percentile

WIDTH = 2 ** (1 / PER_OCTAVE)


def counts_of(*times: float) -> list[int]:
    counts = [0] * BUCKETS
    for time_s in times:
        counts[bucket_of(time_s)] += 1
    return counts


@pytest.mark.parametrize(
    ("seconds", "bucket"),
    [(0.0, 0), (-1.0, 0), (FIRST_S, 0), (FIRST_S * 1.01, 1), (FIRST_S * 1.5, 2), (1.0, 20), (1e9, BUCKETS - 1)],
)
def test_every_time_has_its_bucket(seconds: float, bucket: int) -> None:
    assert bucket_of(seconds) == bucket


def test_of_nothing_there_is_no_percentile() -> None:
    assert percentile([0] * BUCKETS, 50) is None


@pytest.mark.parametrize("percent", [50, 95, 99, 100])
def test_of_one_time_every_percentile_is_about_that(percent: float) -> None:
    found = percentile(counts_of(0.4), percent)
    assert found is not None
    assert 0.4 / WIDTH <= found <= 0.4 * WIDTH


@pytest.mark.parametrize("percent", [1, 50, 95, 99, 100])
@pytest.mark.parametrize("seed", range(20))
def test_percentiles_are_off_by_less_than_a_bucket(seed: int, percent: int) -> None:
    rng = random.Random(seed)
    times = sorted(rng.lognormvariate(rng.uniform(-4, 3), rng.uniform(0.1, 2)) for _ in range(rng.randrange(1, 2000)))
    times = [min(max(time_s, FIRST_S), 1000.0) for time_s in times]
    exact = times[max(0, -(-len(times) * percent // 100) - 1)]
    found = percentile(counts_of(*times), percent)
    assert found is not None
    assert exact / WIDTH * 0.999 <= found <= exact * WIDTH * 1.001


def test_percentiles_rise() -> None:
    counts = counts_of(0.01, 0.01, 0.02, 0.3, 0.3, 5.0, 70.0, 2000.0)
    found = [percentile(counts, percent) or 0.0 for percent in range(1, 101)]
    assert found == sorted(found)
