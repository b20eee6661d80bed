"""One piece of work for everybody who waits for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from proxy_app.services.flights import Flights


class Work:
    """Work that a test lets end; counts how often it ran."""

    def __init__(self, result: Callable[[], str]) -> None:
        self.began, self.go = threading.Event(), threading.Event()
        self.runs = 0
        self._result = result

    def __call__(self) -> str:
        self.runs += 1
        self.began.set()
        assert self.go.wait(15)
        return self._result()


def fail() -> str:
    raise KeyError("no luck")


def test_all_who_wait_get_the_result_of_one_run() -> None:
    flights, work = Flights[str](), Work(lambda: "done")
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(flights.join, "k", work) for _ in range(8)]
        assert work.began.wait(15)
        work.go.set()
        assert [each.result(15) for each in waiting] == ["done"] * 8
    assert work.runs <= 8
    assert flights.join("k", lambda: "anew") == "anew", "a landed flight is not remembered"


def test_who_comes_during_a_flight_starts_none() -> None:
    flights, work = Flights[str](), Work(lambda: "done")
    flight = flights.start("k", work)
    assert work.began.wait(15)
    assert flights.start("k", lambda: "other") is flight
    work.go.set()
    assert flight.landed.wait(15)
    assert (flight.result, work.runs) == ("done", 1)


def test_a_failure_is_raised_for_everybody_and_not_kept() -> None:
    flights, work = Flights[str](), Work(fail)
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(flights.join, "k", work)
        assert work.began.wait(15)
        second = pool.submit(flights.join, "k", work)
        while not second.running():
            pass
        work.go.set()
        for waiting in (first, second):
            with pytest.raises(KeyError, match="no luck"):
                waiting.result(15)
    assert flights.join("k", lambda: "fine") == "fine"


def test_different_keys_do_not_wait_for_each_other() -> None:
    flights, work = Flights[str](), Work(lambda: "late")
    flight = flights.start("slow", work)
    assert flights.join("quick", lambda: "early") == "early"
    assert not flight.landed.is_set()
    work.go.set()
    assert flight.landed.wait(15)
