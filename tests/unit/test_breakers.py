"""The breakers of one worker: what is skipped after which failures, for how long, and who is tried all the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from proxy_app.domain import Backend, Fleet, Health, Member
from proxy_app.routing.breaker import BreakerRules
from proxy_app.services.breakers import Breakers

RULES = BreakerRules(failures=5, open_s=5.0)
PATIENCE_S = 3.0
TIERS = [(1,), (2,), (3,)]


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def move(self, seconds: float) -> None:
        self.now_s += seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breakers(clock: Clock) -> Breakers:
    made = Breakers(RULES)
    made.now = clock
    return made


def fail(breakers: Breakers, backend_id: int, times: int = 5, model: str = "m") -> None:
    for _ in range(times):
        breakers.failed((backend_id, model))


def lose(breakers: Breakers, backend_id: int, times: int = 5, model: str = "m") -> None:
    for _ in range(times):
        breakers.lost((backend_id, model))


def succeed(breakers: Breakers, backend_id: int, model: str = "m") -> None:
    """A good answer from its first byte to its end."""
    breakers.answered((backend_id, model))
    breakers.succeeded((backend_id, model))


def test_five_failures_of_a_model_skip_it_there_and_nothing_else(breakers: Breakers) -> None:
    fail(breakers, 1, 4)
    assert breakers.usable(TIERS, "m") == TIERS
    fail(breakers, 1, 1)
    assert breakers.usable(TIERS, "m") == [(2,), (3,)]
    assert breakers.usable(TIERS, "other") == TIERS
    assert breakers.usable([(1, 2), (3,)], "m") == [(2,), (3,)]


def test_lost_connections_skip_the_backend_for_every_model(breakers: Breakers) -> None:
    for model in ("a", "b", "c", "d", "e"):
        lose(breakers, 1, 1, model)
    assert breakers.usable(TIERS, "never seen") == [(2,), (3,)]


def test_failures_of_five_models_are_no_failure_of_their_backend(breakers: Breakers) -> None:
    for model in ("a", "b", "c", "d", "e"):
        fail(breakers, 1, 4, model)
    assert breakers.usable(TIERS, "a") == TIERS


def test_one_refused_connection_is_enough(breakers: Breakers, clock: Clock) -> None:
    breakers.lost((1, "m"), refused=True)
    assert breakers.usable(TIERS, "m") == [(2,), (3,)]
    # A fifth of the time: an Ollama that restarts is back within seconds.
    clock.move(1.0)
    assert breakers.usable(TIERS, "m") == TIERS


def test_a_success_forgets_the_failures_before_it(breakers: Breakers) -> None:
    for _ in range(10):
        fail(breakers, 1, 4)
        lose(breakers, 1, 4)
        succeed(breakers, 1)
    assert breakers.usable(TIERS, "m") == TIERS


def test_a_good_beginning_is_no_success_of_the_model_before_its_end(breakers: Breakers) -> None:
    """One that dies in mid-stream each time has begun well each time."""
    for _ in range(5):
        breakers.answered((1, "m"))
        breakers.failed((1, "m"))
    assert breakers.usable(TIERS, "m") == [(2,), (3,)]
    assert breakers.usable(TIERS, "other") == TIERS


def test_a_good_beginning_is_all_that_a_backend_needs(breakers: Breakers) -> None:
    for _ in range(5):
        lose(breakers, 1, 4)
        breakers.answered((1, "m"))
    assert breakers.usable(TIERS, "m") == TIERS


def test_a_trial_that_begins_well_lets_the_next_one_in(breakers: Breakers, clock: Clock) -> None:
    """Its stream may take minutes."""
    fail(breakers, 1)
    clock.move(RULES.open_s)
    breakers.tried((1, "m"), PATIENCE_S)
    breakers.answered((1, "m"))
    assert breakers.usable(TIERS, "m") == TIERS


def test_a_success_of_another_model_forgets_no_failures_of_this_one(breakers: Breakers) -> None:
    for _ in range(5):
        fail(breakers, 1, 1, "sick")
        succeed(breakers, 1, "well")
    assert breakers.usable(TIERS, "sick") == [(2,), (3,)]


def test_busy_opens_nothing_however_often(breakers: Breakers) -> None:
    for _ in range(100):
        breakers.busy((1, "m"))
    assert breakers.usable(TIERS, "m") == TIERS


def test_half_open_lets_one_at_a_time_through(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, 1)
    clock.move(RULES.open_s)
    assert breakers.usable(TIERS, "m") == TIERS
    breakers.tried((1, "m"), PATIENCE_S)
    assert breakers.usable(TIERS, "m") == [(2,), (3,)]
    succeed(breakers, 1)
    assert breakers.usable(TIERS, "m") == TIERS


@pytest.mark.parametrize("report", [Breakers.failed, Breakers.lost], ids=["failed", "lost"])
def test_a_trial_that_fails_doubles_the_time(
    breakers: Breakers, clock: Clock, report: Callable[[Breakers, tuple[int, str]], None]
) -> None:
    for _ in range(5):
        report(breakers, (1, "m"))
    clock.move(RULES.open_s)
    breakers.tried((1, "m"), PATIENCE_S)
    report(breakers, (1, "m"))
    clock.move(2 * RULES.open_s - 0.01)
    assert breakers.usable(TIERS, "m") == [(2,), (3,)]
    clock.move(0.01)
    assert breakers.usable(TIERS, "m") == TIERS


def test_a_trial_that_never_reports_holds_nobody_up_for_ever(breakers: Breakers, clock: Clock) -> None:
    fail(breakers, 1)
    clock.move(RULES.open_s)
    breakers.tried((1, "m"), PATIENCE_S)
    clock.move(PATIENCE_S)
    assert breakers.usable(TIERS, "m") == TIERS


def test_where_all_are_out_the_one_that_recovers_first_is_tried(breakers: Breakers, clock: Clock) -> None:
    for backend_id in (2, 3, 1):
        fail(breakers, backend_id)
        clock.move(0.1)
    assert breakers.usable(TIERS, "m") == [(2,)]
    assert breakers.usable([(1, 2, 3)], "m") == [(2,)]
    # Whichever of its two breakers keeps it out for longer counts.
    clock.move(4)
    lose(breakers, 2)
    assert breakers.usable(TIERS, "m") == [(3,)]


def test_a_backend_that_the_polls_brought_back_starts_anew(breakers: Breakers) -> None:
    breakers.follow(fleet("up", "down"))
    fail(breakers, 2)
    lose(breakers, 2)
    fail(breakers, 1)
    breakers.follow(fleet("up", "up"))
    # The other one was there all the time.
    assert breakers.usable(TIERS, "m") == [(2,), (3,)]
    assert breakers.unsuspected(TIERS, "m") == [(2,), (3,)]


def test_a_poll_that_changes_nothing_forgets_nothing(breakers: Breakers) -> None:
    breakers.follow(fleet("up", "up"))
    fail(breakers, 1)
    breakers.follow(fleet("up", "up"))
    breakers.follow(fleet("down", "up"))
    assert breakers.usable(TIERS, "m") == [(2,), (3,)]


def fleet(*states: str) -> Fleet:
    members = tuple(
        replace(Member(Backend(i, f"b{i}", f"http://b{i}", 0), Health()), health=Health(state=state))  # type: ignore[arg-type]
        for i, state in enumerate(states, 1)
    )
    return Fleet(members=members, by_id={member.backend.id: member for member in members})


# --- suspicion, which costs of the retry budget --------------------------------------------------


def test_whose_last_answer_was_no_good_is_suspected(breakers: Breakers) -> None:
    breakers.busy((1, "m"))
    breakers.failed((2, "m"))
    breakers.lost((3, "m"))
    assert breakers.unsuspected(TIERS, "m") == []
    assert breakers.unsuspected(TIERS, "other") == TIERS
    breakers.answered((2, "m"))
    assert breakers.unsuspected([(1, 2), (3,)], "m") == [(2,)]


def test_a_suspicion_is_forgotten_with_time(breakers: Breakers, clock: Clock) -> None:
    """Who had no room an hour ago, and was not asked since, is as good as anybody."""
    breakers.busy((2, "m"))
    clock.move(3600)
    assert breakers.unsuspected(TIERS, "m") == TIERS
