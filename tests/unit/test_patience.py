"""How long an attempt may take until its first byte: warm, cold, and cold with a memory of the last load."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.domain import Backend, Fleet, Health, Member
from proxy_app.routing.patience import KEPT, MARGIN, Patience, learn
from proxy_app.services.loads import Loads

SHIPPED = Patience(warm_s=300, load_s=300)
seconds = st.floats(0, 1e5)


def test_a_load_that_nobody_knows_gets_five_minutes() -> None:
    assert SHIPPED.allowance_s(0) == 300


@pytest.mark.parametrize(("learned_s", "allowed_s"), [(10, 300), (150, 300), (151, 302), (600, 1200), (3600, 7200)])
def test_a_load_gets_twice_what_the_last_one_took_and_never_less_than_the_setting(
    learned_s: float, allowed_s: float
) -> None:
    assert SHIPPED.allowance_s(learned_s) == allowed_s


@given(seconds, seconds)
def test_a_longer_load_is_believed_at_once_and_a_quicker_one_little_by_little(before_s: float, took_s: float) -> None:
    after_s = learn(before_s, took_s)
    assert after_s >= took_s
    assert after_s <= max(before_s, took_s)
    assert after_s >= before_s * KEPT


@given(st.lists(st.floats(0.1, 5000), min_size=1))
def test_no_load_is_cut_that_takes_no_longer_than_twice_the_last_one(loads_s: list[float]) -> None:
    learned_s = 0.0
    for took_s in loads_s:
        learned_s = learn(learned_s, took_s)
        assert SHIPPED.allowance_s(learned_s) >= MARGIN * took_s


# --- as a worker keeps it ------------------------------------------------------------------------

COLD, WARM = (1, "big"), (1, "small")


def fleet() -> Fleet:
    """One backend, which has `small` loaded and `big` not."""
    member = Member(Backend(1, "a", "http://a", 0), Health(state="up"))
    return Fleet(members=(member,), by_id={1: member}, warm={"small": frozenset({1})})


def loads(patience: Patience = SHIPPED) -> Loads:
    return Loads(2.0, 120.0, patience, finishes=False)


def test_a_warm_model_waits_for_its_prompt_alone() -> None:
    limits = loads().limits(fleet(), WARM, may_load=True)
    assert (limits.connect_s, limits.first_byte_s, limits.idle_s, limits.load_s) == (2, 300, 120, 0)


def test_a_cold_model_waits_for_its_load_and_its_prompt() -> None:
    limits = loads().limits(fleet(), COLD, may_load=True)
    assert (limits.first_byte_s, limits.load_s) == (600, 300)


def test_what_a_load_took_doubles_what_the_next_one_may_take() -> None:
    kept = loads()
    kept.learn(fleet(), COLD, 1000.0)
    assert kept.limits(fleet(), COLD, may_load=True).load_s == 2000
    assert kept.limits(fleet(), COLD, may_load=True).first_byte_s == 2300
    # Of that backend and that model alone.
    assert kept.limits(fleet(), (2, "big"), may_load=True).load_s == 300
    assert kept.limits(fleet(), (1, "other"), may_load=True).load_s == 300


def test_what_a_warm_model_took_says_nothing_of_its_load() -> None:
    """A long prompt is no slow disk."""
    kept = loads()
    kept.learn(fleet(), WARM, 1000.0)
    unloaded = Fleet(members=fleet().members, by_id=fleet().by_id)
    assert kept.limits(unloaded, WARM, may_load=True).load_s == 300


def test_quicker_loads_are_forgotten_slowly() -> None:
    kept = loads()
    kept.learn(fleet(), COLD, 1000.0)
    kept.learn(fleet(), COLD, 10.0)
    assert kept.limits(fleet(), COLD, may_load=True).load_s == pytest.approx(1600)
    for _ in range(20):
        kept.learn(fleet(), COLD, 10.0)
    assert kept.limits(fleet(), COLD, may_load=True).load_s == 300
