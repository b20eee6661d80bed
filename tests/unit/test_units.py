"""Numbers and times in the words of the pages."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.web import units


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (3_400_000_000, "3.4 GB"),
        (42_120_000_000, "42.1 GB"),
        (815e9, "815 GB"),
        (5.5e12, "5.5 TB"),
    ],
)
def test_sizes_are_decimal_as_in_ollamas_listing(number: float | None, text: str) -> None:
    assert units.size(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (float("inf"), "–"),
        (0, "0 s"),
        (0.0034, "3 ms"),
        (1.238, "1.24 s"),
        (59.4, "59.4 s"),
        (185, "3 min 5 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (90061, "1 d 1 h"),
    ],
)
def test_spans_have_their_two_largest_units(number: float | None, text: str) -> None:
    assert units.seconds(number) == text


@pytest.mark.parametrize(
    ("text", "at"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("0001-01-01T00:00:00Z", None),
        ("1970-01-01T01:00:10.123456789+01:00", 10.123456),
        ("1970-01-01T00:00:10Z", 10.0),
        ("1970-01-01T00:00:10", 10.0),
    ],
)
def test_times_of_backends_are_read_as_go_writes_them(text: str | None, at: float | None) -> None:
    assert units.moment(text) == at


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_number_breaks_a_page(number: float) -> None:
    assert all((units.utc(number), units.iso(number), units.seconds(number)))


@given(st.text(max_size=40))
def test_no_text_of_a_backend_breaks_a_page(text: str) -> None:
    units.moment(text)


def test_a_model_that_stays_for_ever_is_told_from_one_that_goes() -> None:
    until = units.moment("2318-01-01T00:00:00Z")
    assert units.lasts(until, now=1.8e9)
    assert not units.lasts(1.8e9 + 300, now=1.8e9)
    assert not units.lasts(None, now=1.8e9)
