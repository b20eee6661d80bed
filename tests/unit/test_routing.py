"""The pure decisions: breaker, health, policy, and what an answer means."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.domain import Backend, Digest, Fleet, Health, Holding, Member
from proxy_app.routing import breaker, health, policy
from proxy_app.routing.breaker import CLOSED, BreakerRules
from proxy_app.routing.retry import Verdict, weigh

RULES = BreakerRules(failures=5, open_s=5.0)

# --- breaker -------------------------------------------------------------------------------------


def fail(times: int, now: float = 100.0, *, refused: bool = False) -> breaker.Breaker:
    state = CLOSED
    for _ in range(times):
        state = breaker.failed(state, now, RULES, refused=refused)
    return state


def test_five_failures_in_a_row_open_it_for_its_time() -> None:
    assert fail(4).allows(100)
    opened = fail(5)
    assert not opened.allows(100)
    assert not opened.allows(104.99)
    assert opened.allows(105)


def test_a_refused_connection_opens_it_at_once_and_for_less_time() -> None:
    opened = fail(1, refused=True)
    assert not opened.allows(100)
    assert opened.allows(101)


def test_failures_of_requests_that_were_on_their_way_do_not_prolong_it() -> None:
    """Twenty streams that break together are one outage."""
    assert fail(20).open_until == fail(5).open_until


def test_each_further_failure_doubles_the_time_up_to_a_limit() -> None:
    state, now, times = fail(5), 100.0, []
    for _ in range(8):
        times.append(state.open_until - state.opened_at)
        now = state.open_until
        state = breaker.failed(state, now, RULES, refused=False)
    assert times[:4] == [5, 10, 20, 40]
    assert max(times) == 60


def test_a_refusing_backend_is_never_skipped_for_longer_than_the_first_time() -> None:
    state, now = fail(1, refused=True), 100.0
    for _ in range(20):
        assert state.open_until - state.opened_at <= RULES.open_s
        now = state.open_until
        state = breaker.failed(state, now, RULES, refused=True)


def test_half_open_takes_one_request_at_a_time() -> None:
    opened = fail(5)
    asked = breaker.tried(opened, 105, 600)
    assert not asked.allows(106)
    # The one that went never reported: the next one may go once patience is over.
    assert asked.allows(105 + 600)
    again = breaker.failed(asked, 107, RULES, refused=False)
    assert not again.allows(107)
    assert again.allows(117)


def test_a_request_through_a_closed_one_changes_nothing() -> None:
    assert breaker.tried(CLOSED, 1, 600) is CLOSED


@given(st.lists(st.tuples(st.floats(0, 1000), st.booleans()), max_size=30))
def test_it_always_opens_again_for_a_request(failures: list[tuple[float, bool]]) -> None:
    state, now = CLOSED, 0.0
    for wait, refused in failures:
        now += wait
        state = breaker.failed(state, now, RULES, refused=refused)
    assert state.allows(now + 12 * RULES.open_s)


# --- health --------------------------------------------------------------------------------------


def judge(before: health.Verdict, *probes: bool) -> health.Verdict:
    for probe_ok in probes:
        before = health.judge(before, probe_ok=probe_ok, fall=3, rise=2)
    return before


UP, DOWN = health.Verdict("up"), health.Verdict("down")


@pytest.mark.parametrize(("probe_ok", "state"), [(True, "up"), (False, "down")])
def test_the_first_probe_decides_alone(probe_ok: bool, state: str) -> None:
    assert judge(health.Verdict(), probe_ok).state == state


def test_it_falls_and_rises_at_its_thresholds() -> None:
    assert judge(UP, False, False).state == "up"
    assert judge(UP, False, False, False) == DOWN
    assert judge(DOWN, True).state == "down"
    assert judge(DOWN, True, True) == UP


def test_only_probes_in_a_row_count() -> None:
    assert judge(UP, False, False, True, False, False).state == "up"
    assert judge(DOWN, True, False, True).state == "down"


# --- policy --------------------------------------------------------------------------------------


def member(
    number: int, priority: int, state: str = "up", *, draining: bool = False, cloud: bool | None = None
) -> Member:
    backend = Backend(number, f"b{number}", f"http://b{number}", priority, draining=draining, cloud=cloud)
    return Member(backend, Health(state=state))  # type: ignore[arg-type]


def fleet(*members: Member, digests: dict[int, str] | None = None) -> Fleet:
    """A Fleet whose members all hold `m`; `holders` in the order that Fleet promises."""
    held = [Holding(m.backend.id, "m", "m", Digest((digests or {}).get(m.backend.id, "d")), {}) for m in members]
    by_id = {m.backend.id: m for m in members}
    alive = [h for h in held if by_id[h.backend_id].is_live]
    dead = [h for h in held if not by_id[h.backend_id].is_live]
    current = next((h.digest for h in alive), None)
    alive.sort(key=lambda h: h.digest != current)
    return Fleet(members=members, holders={"m": (*alive, *dead)}, by_id=by_id)


def test_config_order_is_the_order_of_candidates() -> None:
    assert policy.hosts(fleet(member(3, 0), member(1, 1), member(2, 2)), "m") == [(3,), (1,), (2,)]


def test_equal_priorities_are_one_tier() -> None:
    assert policy.hosts(fleet(member(1, 0), member(2, 0), member(3, 1)), "m") == [(1, 2), (3,)]


def test_the_dead_the_unknown_and_the_draining_are_no_candidates() -> None:
    seen = fleet(member(1, 0, "down"), member(2, 1, "unknown"), member(3, 2, draining=True), member(4, 3))
    assert policy.hosts(seen, "m") == [(4,)]


def test_a_drifted_holder_ranks_last_even_in_the_first_tier() -> None:
    drifted = {2: "other"}
    assert policy.hosts(fleet(member(1, 0), member(2, 0), member(3, 0), digests=drifted), "m") == [(1, 3), (2,)]
    assert policy.hosts(fleet(member(1, 0), member(2, 1), member(3, 2), digests=drifted), "m") == [(1,), (3,), (2,)]


def test_nobody_hosts_what_nobody_holds() -> None:
    assert policy.hosts(fleet(member(1, 0)), "other") == []


def test_cloud_goes_to_those_that_may() -> None:
    switched_off = replace(member(2, 1), health=Health(state="up", cloud_disabled=True))
    forced_on = replace(member(3, 2, cloud=True), health=Health(state="up", cloud_disabled=True))
    forced_off = member(4, 3, cloud=False)
    assert policy.cloud_hosts(fleet(member(1, 0), switched_off, forced_on, forced_off, member(5, 4, "down"))) == [
        (1,),
        (3,),
    ]


def test_open_breakers_are_skipped() -> None:
    open_ones = {1, 3}
    left = policy.skip_broken([(1, 2), (3,), (4,)], open_ones.__contains__, lambda i: 0.0)
    assert left == [(2,), (4,)]


def test_where_all_are_open_the_first_to_recover_is_tried() -> None:
    recovers = {1: 9.0, 2: 5.0, 3: 7.0}
    assert policy.skip_broken([(1, 2), (3,)], lambda i: True, recovers.__getitem__) == [(2,)]
    assert policy.skip_broken([], lambda i: True, recovers.__getitem__) == []


# --- what an answer means ------------------------------------------------------------------------

BUSY = b'{"error":"server busy, please try again.  maximum pending requests exceeded"}'


@pytest.mark.parametrize(
    ("status", "body", "verdict"),
    [
        (200, b"", Verdict.PASS),
        (400, b"", Verdict.PASS),
        (413, b"", Verdict.PASS),
        (422, b"", Verdict.PASS),
        (401, b"", Verdict.MISCONFIGURED),
        (403, b"", Verdict.MISCONFIGURED),
        (301, b"", Verdict.MISCONFIGURED),
        (307, b"", Verdict.MISCONFIGURED),
        (304, b"", Verdict.PASS),
        (404, b"", Verdict.MISSING),
        (429, b"", Verdict.BUSY),
        (503, BUSY, Verdict.BUSY),
        (503, b'{"error":"loading"}', Verdict.FAILED),
        (500, BUSY, Verdict.FAILED),
        (500, b"", Verdict.FAILED),
        (502, b"", Verdict.FAILED),
        (599, b"", Verdict.FAILED),
        (101, b"", Verdict.FAILED),
    ],
)
def test_an_answer_is_weighed(status: int, body: bytes, verdict: Verdict) -> None:
    assert weigh(status, body, is_listed=True) is verdict


def test_a_404_of_what_the_fleet_does_not_list_is_the_answer() -> None:
    assert weigh(404, b"", is_listed=False) is Verdict.PASS
