"""Times counted in buckets whose limits grow by the same factor: what can be added up over workers and days.

A percentile that is read from them is off by less than a bucket's width, 41 %; mostly by much less.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

# The first bucket ends here, each one after it `2 ** (1 / PER_OCTAVE)` times later, and the last one never: after 17
# minutes no difference matters. Rows of the registry are made of these: they never change.
FIRST_S = 0.001
PER_OCTAVE = 2
BUCKETS = 41


def bucket_of(seconds: float) -> int:
    """The number of the bucket that a time belongs into."""
    if seconds <= FIRST_S:
        return 0
    return min(math.ceil(PER_OCTAVE * math.log2(seconds / FIRST_S)), BUCKETS - 1)


def percentile(counts: Sequence[int], percent: float) -> float | None:
    """The time in seconds below which this part of all times lies; None where there are none.

    Args:
        counts: of each bucket.
    """
    left = sum(counts) * percent / 100
    if not left:
        return None
    last = max(number for number, count in enumerate(counts) if count)
    for number, count in enumerate(counts):
        if count and (left <= count or number == last):
            return _end_s(number - 1 + min(left / count, 1.0))
        left -= count
    raise AssertionError("the last bucket is reached")


def _end_s(number: float) -> float:
    """Where a bucket ends; of a broken number, a point inside one."""
    return float(FIRST_S * 2 ** (number / PER_OCTAVE))
