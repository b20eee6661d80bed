"""What was used, in a real registry: summed by hour, key, model and backend, kept for a while, and never lost."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy_app.dialects.usage import Spent
from proxy_app.services import usage as usage_module
from proxy_app.services.relayed import Trace
from proxy_app.services.usage import HOUR_S, UsageBook
from proxy_app.store.redis import unix_now
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally, UsageKey, UsageStore
from tests.wire.shows import until

HOUR = 1_790_000_000 // HOUR_S * HOUR_S
KEY = UsageKey(HOUR, "k", "tiny", "one")


@pytest.fixture
def store(registry: Registry) -> UsageStore:
    return UsageStore(registry)


@pytest.fixture
def book(registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[UsageBook]:
    """An account that is written at once."""
    monkeypatch.setattr(usage_module, "WRITE_S", 0.02)
    made = UsageBook(tmp_path, keep_days=1)
    made.start()
    yield made
    made.close()


def trace_of(key_id: str = "k", model: str = "tiny", backend: str = "one", outcome: str = "complete") -> Trace:
    trace = Trace("id", "/api/chat", model, key_id, 200, outcome, [backend] if backend else [])
    trace.is_listed = bool(backend)
    return trace


def tallies(store: UsageStore) -> dict[tuple[str, str, str], Tally]:
    return {key[1:]: tally for key, tally in store.since(0)}


def test_what_is_added_is_summed(store: UsageStore) -> None:
    one = Tally(1, 2, 3, 4, 5, 6, 7, 8)
    store.add({KEY: one}, 0)
    store.add({KEY: one, KEY._replace(model="other"): one}, 0)
    assert store.since(0) == [(KEY._replace(model="other"), one), (KEY, one + one)]


@pytest.mark.parametrize("part", ["hour", "key_id", "model", "backend"])
def test_each_part_is_counted_apart(store: UsageStore, part: str) -> None:
    other = KEY._replace(hour=HOUR + HOUR_S) if part == "hour" else KEY._replace(**{part: "x"})
    store.add({KEY: Tally(1), other: Tally(2)}, 0)
    assert dict(store.since(0)) == {KEY: Tally(1), other: Tally(2)}


def test_what_is_older_than_was_said_is_forgotten(store: UsageStore) -> None:
    older, newer = KEY._replace(hour=HOUR - HOUR_S), KEY
    store.add({older: Tally(1), newer: Tally(1)}, 0)
    store.add({}, HOUR)
    assert [key for key, _ in store.since(0)] == [newer]


def test_only_what_was_asked_for_is_read(store: UsageStore) -> None:
    later = KEY._replace(hour=HOUR + HOUR_S)
    store.add({KEY: Tally(1), later: Tally(2)}, 0)
    assert store.since(HOUR + 1) == [(later, Tally(2))]


def test_a_batch_that_fails_is_written_not_at_all(store: UsageStore) -> None:
    with pytest.raises(Exception, match=r"."):
        store.add({KEY: Tally(1), KEY._replace(model="x"): Tally(None)}, 0)  # type: ignore[arg-type]
    assert store.since(0) == []


# -- a worker's account ---------------------------------------------------------------------------------


def test_requests_of_an_hour_are_one_row(book: UsageBook, store: UsageStore) -> None:
    for _ in range(3):
        book.note(trace_of(), Spent(7, 4, 52, 523))
    book.note(trace_of(outcome="truncated"), Spent(0, 2, 9, is_exact=False))
    until(lambda: tallies(store) != {} and sum(t.requests for t in tallies(store).values()) == 4, "it is written")
    assert tallies(store) == {("k", "tiny", "one"): Tally(4, 1, 21, 14, 165, 1569, 1, 1)}
    hours = [key.hour for key, _ in store.since(0)]
    assert all(hour % HOUR_S == 0 and 0 <= unix_now() - hour <= 2 * HOUR_S for hour in hours)


def test_spellings_of_a_model_are_one_row(book: UsageBook, store: UsageStore) -> None:
    for model in ("tiny", "TINY", "Tiny:latest"):
        book.note(trace_of(model=model), Spent())
    until(lambda: sum(t.requests for t in tallies(store).values()) == 3, "it is written")
    assert set(tallies(store)) == {("k", "tiny", "one")}


def test_a_model_that_nobody_holds_is_not_stored(book: UsageBook, store: UsageStore) -> None:
    book.note(trace_of(model="made-up", backend="", outcome="model_hidden"), Spent())
    until(lambda: tallies(store) != {}, "it is written")
    assert tallies(store) == {("k", "", ""): Tally(1, 1)}


def test_a_registry_that_is_locked_loses_nothing(
    book: UsageBook, store: UsageStore, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What came back is to be seen before it is on its way again.
    monkeypatch.setattr(usage_module, "WRITE_S", 0.5)
    with closing(sqlite3.connect(registry.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        for number in range(50):
            book.note(trace_of(model=f"m{number % 5}"), Spent(1, 1, 1, 1))
        # It has tried in vain.
        until(lambda: not book._tallies, "a batch is on its way")
        until(lambda: bool(book._tallies), "it came back")
        for number in range(50):
            book.note(trace_of(model=f"m{number % 5}"), Spent(1, 1, 1, 1))
        other.execute("ROLLBACK")
    until(lambda: sum(t.requests for t in tallies(store).values()) == 100, "it is written")
    assert set(tallies(store).values()) == {Tally(20, 0, 20, 20, 20, 20, 0)}


def test_what_is_left_at_the_end_is_written(registry: Registry, store: UsageStore, tmp_path: Path) -> None:
    book = UsageBook(tmp_path, keep_days=1)
    book.start()
    book.note(trace_of(), Spent(1, 1, 1, 1))
    book.close()
    assert tallies(store) == {("k", "tiny", "one"): Tally(1, 0, 1, 1, 1, 1, 0)}


def test_an_answer_that_lies_loses_nobody_elses_account(book: UsageBook, store: UsageStore) -> None:
    """A backend may say any number of tokens; a registry's numbers have 64 bits."""
    book.note(trace_of(key_id="liar"), Spent(10**30, 10**30, 10**30, 10**30))
    book.note(trace_of(), Spent(1, 1, 1, 1))
    until(lambda: ("k", "tiny", "one") in tallies(store), "the other is written")


def test_old_hours_are_forgotten_as_new_ones_are_written(book: UsageBook, store: UsageStore) -> None:
    now = int(unix_now()) // HOUR_S * HOUR_S
    old, young = KEY._replace(hour=now - 26 * HOUR_S), KEY._replace(hour=now - 22 * HOUR_S)
    store.add({old: Tally(1), young: Tally(1)}, 0)
    book.note(trace_of(), Spent())
    until(lambda: len(store.since(now)) == 1, "it is written")
    assert [key.hour for key, _ in store.since(0)] == [young.hour, now]


def test_no_more_rows_than_memory_has_room_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, store: UsageStore
) -> None:
    """While the registry is away, names must not fill the memory; the sums are kept."""
    monkeypatch.setattr(usage_module, "MOST", 3)
    book = UsageBook(tmp_path, keep_days=1)
    for number in range(10):
        book.note(trace_of(model=f"m{number}"), Spent(1, 1, 1, 1))
    assert len(book._tallies) == 4
    book.start()
    book.close()
    assert sum(t.tokens_in for t in tallies(store).values()) == 10
