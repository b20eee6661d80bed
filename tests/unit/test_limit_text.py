"""Limits as people write them."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.domain import KeyLimits, parse_limits

NAMES = [field.name for field in fields(KeyLimits)]
numbers = st.none() | st.integers(0, 10**12)
limits = st.builds(KeyLimits, *[numbers] * len(NAMES))


@given(limits)
def test_what_is_written_is_read_again(wanted: KeyLimits) -> None:
    assert parse_limits(str(wanted)) == wanted


@given(limits, limits)
def test_own_limits_stand_over_the_default_one_by_one(own: KeyLimits, default: KeyLimits) -> None:
    both = own.over(default)
    for name in NAMES:
        mine = getattr(own, name)
        assert getattr(both, name) == (getattr(default, name) if mine is None else mine)


@pytest.mark.parametrize(
    "text", ["rpm=60,burst=20", "rpm=60 burst=20", " rpm=60 ,\n burst=20 ", "rpm=1,rpm=60,burst=20"]
)
def test_commas_and_blanks_are_the_same(text: str) -> None:
    assert parse_limits(text) == KeyLimits(rpm=60, burst=20)


@pytest.mark.parametrize("text", ["", " ", "none"])
def test_nothing_is_no_limit(text: str) -> None:
    assert parse_limits(text) == KeyLimits()


@pytest.mark.parametrize(
    "text",
    [
        "rpm",
        "rpm=",
        "rpm=-1",
        "rpm=1.5",
        "rpm=1e3",
        "rpm=x",
        "RPM=1",
        "speed=1",
        "=1",
        "rpm=60;tpm=1",
        "60",
        "rpmnone=1",
    ],
)
def test_what_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected one of rpm=N"):
        parse_limits(text)


@pytest.mark.parametrize("text", ["rpm=²", "rpm=٣"])
def test_digits_of_other_scripts_are_refused_or_are_numbers(text: str) -> None:
    """A setting that cannot be read is one sentence, never a traceback of another kind."""
    try:
        assert parse_limits(text).rpm == 3
    except ValueError as exc:
        assert "expected one of" in str(exc)  # noqa: PT017 - either of two endings is right


@pytest.mark.parametrize("name", ["rpm", "concurrent", "tpm", "tpd", "gpu"])
def test_what_was_used_before_matters_to_these(name: str) -> None:
    assert parse_limits(f"{name}=0").counts
    assert parse_limits(f"{name}=1").counts_work is (name in {"tpm", "tpd", "gpu"})


@pytest.mark.parametrize("name", ["burst", "num_ctx", "num_predict", "images", "body", "keep_alive"])
def test_and_not_to_these(name: str) -> None:
    assert not parse_limits(f"{name}=1").counts
