"""A worker's running requests: there as long as somebody works on them, whatever happens to them."""

from __future__ import annotations

import pytest

from proxy_app.errors import Cancelling
from proxy_app.services.relayed import Trace
from proxy_app.services.running import Runs


def trace(request_id: str = "r") -> Trace:
    return Trace(request_id, "/api/chat", "tiny", "k")


def test_a_run_is_there_until_its_end() -> None:
    runs = Runs()
    run = runs.begin(trace())
    assert list(runs) == [run]
    runs.end(run)
    runs.end(run)
    assert not runs


def test_what_nobody_works_on_is_gone_even_where_nobody_said_so() -> None:
    runs = Runs()
    run = runs.begin(trace())
    assert len(runs) == 1
    del run
    assert not runs


def test_runs_have_names_of_their_own_and_the_newest_is_first() -> None:
    runs = Runs()
    kept = [runs.begin(trace("same")) for _ in range(5)]
    for number, run in enumerate(kept):
        run.at = float(number)
    assert len({run.id for run in kept}) == 5
    assert list(runs) == kept[::-1]


def test_only_the_one_that_is_meant_is_cancelled() -> None:
    runs = Runs()
    one, other = runs.begin(trace()), runs.begin(trace())
    assert runs.cancel(one.id)
    assert not runs.cancel("f" * 32)
    assert not runs.cancel("r"), "a client's name for it"
    with pytest.raises(Cancelling), one.waiting.exposed():
        pytest.fail("it goes on")
    with other.waiting.exposed():
        assert not other.waiting.is_interrupted


def test_the_backend_is_the_one_that_is_asked_now() -> None:
    run = Runs().begin(trace())
    assert run.backend is None
    run.trace.attempts.append("a")
    assert run.backend == "a"
    run.trace.reasons.append("was busy (503)")
    assert run.backend is None
    run.trace.attempts.append("b")
    assert run.backend == "b"
