"""Finished requests and the sums of minutes, in a real registry: bounded, added up, and never lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from proxy_app.dialects.usage import Spent
from proxy_app.domain.histogram import BUCKETS, bucket_of
from proxy_app.errors import RegistryAway
from proxy_app.services import traffic as traffic_module
from proxy_app.services.admin.in_flight import InFlight
from proxy_app.services.admin.traffic import Traffic
from proxy_app.services.relayed import Trace
from proxy_app.services.running import Run, Runs
from proxy_app.services.traffic import TrafficBook
from proxy_app.services.usage import HOUR_S
from proxy_app.store import traffic as store_module
from proxy_app.store.redis import RedisGate, unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.running import RunningBoard
from proxy_app.store.traffic import KEPT_MINUTES_S, KEPT_REQUESTS_S, RequestRow, Sums, TrafficStore
from proxy_app.store.usage import Tally, UsageKey, UsageStore
from tests.wire.shows import until

NOW = 1_790_000_000
MINUTE = NOW // 60 * 60
ROW = RequestRow(
    id="1",
    request_id="r",
    at=NOW,
    route="/api/chat",
    model="tiny",
    key_id="k",
    status=200,
    outcome="complete",
    attempts=("a", "b"),
    first_byte_s=0.25,
    total_s=1.5,
    load_ms=523,
    tokens_in=7,
    tokens_out=4,
    tokens_per_s=100.0,
    explanation="a was busy (503), b answered",
)


@pytest.fixture
def store(registry: Registry) -> TrafficStore:
    return TrafficStore(registry)


@pytest.fixture
def book(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TrafficBook]:
    """An account that is written at once."""
    monkeypatch.setattr(traffic_module, "WRITE_S", 0.02)
    made = TrafficBook(tmp_path)
    made.start()
    yield made
    made.close()


@pytest.fixture
def traffic(registry: Registry, tmp_path: Path) -> Iterator[Traffic]:
    """Where there is no Redis."""
    with closing(RedisGate(None, tmp_path / "none", 1.0)) as gate:
        yield Traffic(InFlight(Runs(), RunningBoard(gate, "test")), tmp_path)


def run_of(**changes: object) -> Run:
    trace = Trace("r", "/api/chat", "tiny", "k", 200, "complete", ["a"])
    trace.first_byte_s = 0.25
    for name, value in changes.items():
        setattr(trace, name, value)
    return Run(trace)


def sums_of(seconds: float, count: int) -> Sums:
    sums = Sums(count, 1, 40, 30, 600, 2)
    sums.waits[bucket_of(seconds)] = count
    return sums


# -- the store ------------------------------------------------------------------------------------------


def test_a_request_is_read_as_it_was_written(store: TrafficStore) -> None:
    bare = replace(ROW, id="2", at=NOW + 1, attempts=(), first_byte_s=None, tokens_per_s=None)
    store.add([ROW, bare], {}, NOW)
    assert store.last(10) == [bare, ROW]
    assert store.last(1) == [bare]


def test_a_batch_that_comes_twice_is_there_once(store: TrafficStore) -> None:
    store.add([ROW], {}, NOW)
    store.add([ROW, replace(ROW, id="2")], {}, NOW)
    assert len(store.last(10)) == 2


def test_only_the_newest_requests_are_kept(store: TrafficStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "KEPT_REQUESTS", 10)
    for start in range(0, 35, 5):
        store.add([replace(ROW, id=str(n), at=NOW + n) for n in range(start, start + 5)], {}, NOW)
    assert [row.id for row in store.last(100)] == [str(n) for n in range(34, 24, -1)]


def test_nothing_older_than_was_said_is_kept(store: TrafficStore) -> None:
    store.add([ROW], {MINUTE: sums_of(0.1, 1)}, NOW)
    store.add([replace(ROW, id="2", at=NOW + 100)], {}, NOW + KEPT_REQUESTS_S + 50)
    assert [row.id for row in store.last(10)] == ["2"]
    assert store.steps(0, 60)
    store.add([], {}, MINUTE + KEPT_MINUTES_S + 1)
    assert not store.steps(0, 60)


def test_minutes_of_several_workers_are_added_up(store: TrafficStore) -> None:
    store.add([], {MINUTE: sums_of(0.1, 3)}, NOW)
    store.add([], {MINUTE: sums_of(2.0, 4), MINUTE + 60: sums_of(2.0, 5)}, NOW)
    both = sums_of(0.1, 3)
    both.add(sums_of(2.0, 4))
    assert both.requests == sum(both.waits) == 7
    assert store.steps(0, 60) == {MINUTE: both, MINUTE + 60: sums_of(2.0, 5)}


def test_minutes_are_read_in_steps(store: TrafficStore) -> None:
    hour = NOW // HOUR_S * HOUR_S
    store.add([], {hour + 60 * n: sums_of(0.1, 1) for n in range(60)}, NOW)
    found = store.steps(hour + 600, 600)
    assert list(found) == [hour + n * 600 for n in range(1, 6)]
    assert {(sums.requests, sum(sums.waits)) for sums in found.values()} == {(10, 10)}


def test_a_batch_that_fails_is_written_not_at_all(store: TrafficStore) -> None:
    with pytest.raises(RegistryAway):
        store.add([ROW], {MINUTE: Sums(requests=None)}, NOW)  # type: ignore[arg-type]
    assert store.last(10) == []


def test_there_is_a_column_for_every_bucket(registry: Registry) -> None:
    with registry.reading() as db:
        names = db.table("minutes").columns_dict
    assert [name for name in names if name.startswith("w")] == [f"w{n}" for n in range(BUCKETS)]


# -- a worker's account ---------------------------------------------------------------------------------


def test_what_ends_is_written(book: TrafficBook, store: TrafficStore) -> None:
    run, before = run_of(attempts=["a", "b"], reasons=["was busy (503)"]), unix_now()
    book.note(run, Spent(7, 4, 52, 1_523, out_ms=40))
    until(lambda: bool(store.last(10)), "it is written")
    (row,) = store.last(10)
    assert before <= row.at <= unix_now()
    assert row == replace(ROW, id=run.id, at=row.at, total_s=row.total_s, load_ms=1_523, explanation=row.explanation)
    assert row.explanation == "a was busy (503), b answered after loading the model for 1.5 s"
    (sums,) = store.steps(0, 60).values()
    expected = Sums(requests=1, errors=0, tokens_out=4, timed_tokens=4, out_ms=40, loads=1)
    expected.waits[bucket_of(0.25)] = 1
    assert sums == expected


@pytest.mark.parametrize(
    ("status", "outcome", "is_fault"),
    [
        (200, "complete", False),
        (400, "complete", False),
        (404, "model_not_found", False),
        (403, "model_hidden", False),
        (429, "limited", False),
        (499, "client_gone", False),
        (200, "client_gone", False),
        (200, "cancelled", False),
        (503, "cancelled", False),
        (200, "truncated", True),
        (200, "silent", True),
        (200, "stopped", True),
        (500, "passed_on", True),
        (502, "all_backends_failed", True),
        (503, "unavailable", True),
        (504, "upstream_timeout", True),
    ],
)
def test_only_what_the_fleet_failed_is_its_error(status: int, outcome: str, is_fault: bool) -> None:
    assert run_of(status=status, outcome=outcome).trace.is_fault == is_fault


def test_the_errors_of_a_chart_are_the_fleets(book: TrafficBook, store: TrafficStore) -> None:
    for changes in ({"outcome": "truncated"}, {"status": 404}, {"outcome": "limited", "status": 429}, {"status": 502}):
        book.note(run_of(first_byte_s=None, **changes), Spent())
    until(lambda: len(store.last(10)) == 4, "it is written")
    assert sum(sums.errors for sums in store.steps(0, 60).values()) == 2
    assert all(not any(sums.waits) for sums in store.steps(0, 60).values())


def test_a_registry_that_is_locked_loses_nothing(
    book: TrafficBook, store: TrafficStore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What came back is to be seen before it is on its way again.
    monkeypatch.setattr(traffic_module, "WRITE_S", 0.5)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        book.note(run_of(), Spent())
        until(lambda: not book._noted, "a batch is on its way")
        until(lambda: bool(book._noted), "it came back")
        book.note(run_of(), Spent())
        other.execute("ROLLBACK")
    until(lambda: len(store.last(10)) == 2, "it is written")
    assert sum(sums.requests for sums in store.steps(0, 60).values()) == 2


def test_memory_is_bounded_while_the_registry_is_away(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: TrafficStore
) -> None:
    monkeypatch.setattr(traffic_module, "MOST", 3)
    book = TrafficBook(tmp_path)
    runs = [run_of() for _ in range(10)]
    for run in runs:
        book.note(run, Spent())
    book._give_back(book._take())
    assert len(book._noted) == 3
    book.start()
    book.close()
    assert {row.id for row in store.last(10)} == {run.id for run in runs[-3:]}
    assert sum(sums.requests for sums in store.steps(0, 60).values()) == 10, "the sums know all"


def test_minutes_of_a_day_are_remembered_and_no_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(traffic_module, "MOST_MINUTES", 5)
    book = TrafficBook(tmp_path)
    clock = iter(range(MINUTE, MINUTE + 600, 60))
    monkeypatch.setattr(traffic_module, "unix_now", lambda: next(clock))
    for _ in range(10):
        book.note(run_of(), Spent())
    assert list(book._noted.minutes) == [MINUTE + 60 * n for n in range(5, 10)]


def test_an_answer_that_lies_loses_nobody_elses_account(book: TrafficBook, store: TrafficStore) -> None:
    book.note(run_of(), Spent(10**30, 10**30, 10**30, 10**30, out_ms=10**30))
    book.note(run_of(), Spent(1, 1, 1, 1))
    until(lambda: len(store.last(10)) == 2, "both are written")


def test_a_name_that_is_half_a_character_loses_nobody_elses_account(book: TrafficBook, store: TrafficStore) -> None:
    book.note(run_of(model="a\ud800b" + "x" * 1000), Spent())
    until(lambda: bool(store.last(10)), "it is written")
    assert store.last(1)[0].model == "a?b" + "x" * 297


# -- what is shown of it --------------------------------------------------------------------------------


def test_a_finished_request_is_shown(traffic: Traffic, store: TrafficStore) -> None:
    store.add([ROW, replace(ROW, id="2", attempts=(), load_ms=0, at=NOW - 1)], {}, NOW)
    first, second = traffic.finished()
    assert (first.id, first.backend, first.attempts, first.load_s) == ("1", "b", ["a", "b"], 0.523)
    assert (second.id, second.backend, second.load_s) == ("2", None, None)
    assert len(traffic.finished(limit=1)) == 1


@pytest.mark.parametrize("span_s", [3_600.0, 5 * 3600.0, 86_400.0, 30 * 86_400.0, 1.0, 1e9])
def test_a_chart_has_a_point_for_every_step_up_to_now(traffic: Traffic, store: TrafficStore, span_s: float) -> None:
    now = int(unix_now())
    store.add([], {now // 60 * 60: sums_of(0.1, 3), now // 60 * 60 - 1200: sums_of(0.1, 4)}, now)
    chart = traffic.chart(span_s)
    times = [point.at for point in chart.points]
    assert times == list(range(int(times[0]), int(times[-1]) + 1, int(chart.step_s)))
    assert 60 <= len(times) <= 150
    assert times[-1] <= unix_now() < times[-1] + chart.step_s + 5
    assert abs(len(times) * chart.step_s - chart.span_s) < chart.step_s
    assert sum(point.requests for point in chart.points) == 7


@pytest.mark.parametrize("span_s", [6 * 3600, 86_400, 7 * 86_400, 30 * 86_400])
def test_a_chart_has_the_gpu_time_of_each_key(traffic: Traffic, registry: Registry, span_s: int) -> None:
    hour = int(unix_now()) // HOUR_S * HOUR_S
    keys = [UsageKey(hour - n * HOUR_S, "k", f"m{n}", "a") for n in (0, 1, 2)]
    UsageStore(registry).add({key: Tally(1, gpu_ms=10_000) for key in keys}, 0)
    chart = traffic.chart(span_s)
    used = {point.at: point.gpu_s for point in chart.gpu_points}
    assert sum(at.get("k", 0.0) for at in used.values()) == pytest.approx(30.0)
    assert {key for at in used.values() for key in at} == {"k"}
    assert list(used) == list(range(min(used), max(used) + 1, int(chart.gpu_step_s)))
    assert min(used) <= chart.points[0].at
    assert max(used) <= unix_now()


def test_gpu_time_of_a_short_span_is_not_split(traffic: Traffic, registry: Registry) -> None:
    """Only the sum of an hour is known: a minute's share of it would be made up."""
    hour = int(unix_now()) // HOUR_S * HOUR_S
    UsageStore(registry).add({UsageKey(hour, "k", "m", "a"): Tally(1, gpu_ms=10_000)}, 0)
    points = [point for point in traffic.chart(3600).gpu_points if point.gpu_s]
    assert [(point.at, point.gpu_s) for point in points] == [(hour, {"k": 10.0})]
