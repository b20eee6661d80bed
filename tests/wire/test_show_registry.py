"""Serving while the registry is locked, damaged, or away: nothing that can be answered without it waits for it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from conformance.fakes.http import fetch
from tests.conftest import FakeFactory
from tests.fakes import procs
from tests.fakes.procs import Process
from tests.product import environment, gateway, listed
from tests.wire.shows import cache_of, show, until

# Far above what these answers need, far below any wait for a lock.
QUICK_S = 3.0
# A start's bar is 5 s; the rest is for a busy machine.
START_S = 10.0


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process holds the registry's write lock."""
    with closing(sqlite3.connect(file, timeout=5, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield


def chat(url: str) -> int:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    return fetch(f"{url}/api/chat", "POST", json=body).status


def slowest_s(process: Process) -> float:
    """The slowest of all kinds of requests, each of which has to succeed."""
    url, took = process.url, []
    for ask in (
        lambda: show(url, "tiny").status,
        lambda: show(url, "tiny", verbose=True).status,
        lambda: process.get("/api/tags").status,
        lambda: process.get("/api/ps").status,
        lambda: process.get("/readyz").status,
        lambda: chat(url),
    ):
        for _ in range(5):
            started = time.monotonic()
            assert ask() == 200
            took.append(time.monotonic() - started)
    return max(took)


@pytest.mark.alone
def test_a_lock_delays_no_request(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    with gateway([fake], tmp_path) as process:
        with locked(tmp_path / "data" / "caravan.db"):
            process.wait_output("is locked by another process")
            assert slowest_s(process) < QUICK_S
            fake.add_model("meanwhile")
        until(lambda: "meanwhile:latest" in listed(process.url), "learned after the lock")


@pytest.mark.alone
def test_a_server_that_starts_during_a_lock_serves_in_time(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    with gateway([fake], tmp_path):
        pass
    with locked(tmp_path / "data" / "caravan.db"):
        started = time.monotonic()
        with procs.gunicorn(environment([fake]), tmp_path) as process:
            process.wait_ready("/", deadline_s=25)
            took = time.monotonic() - started
            assert listed(process.url) == {"tiny:latest"}, "what was learned before is still known"
            assert took < START_S


def test_a_registry_that_is_no_database_is_put_aside_and_made_anew(fakes: FakeFactory, tmp_path: Path) -> None:
    damaged = b"no database " * 1000
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "caravan.db").write_bytes(damaged)
    with gateway([fakes()], tmp_path) as process:
        process.wait_output("is no SQLite file: it is kept as caravan.db.damaged-")
        assert cache_of(show(process.url, "tiny")) == "miss"
    kept = list((tmp_path / "data").glob("caravan.db.damaged-*"))
    assert [path.read_bytes() for path in kept] == [damaged]
