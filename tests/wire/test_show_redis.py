"""Shows while the shared layer is there, sick, or gone."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.fakes.models import derived_digest
from conformance.fakes.ollama import FakeModel
from tests.conftest import FakeFactory
from tests.fakes.procs import ROOT, Process, caravan
from tests.fakes.redis import PrivateRedis
from tests.product import PATIENT, environment, listed
from tests.wire.shows import cache_of, change, gateway, publish, show, shows, until

# Redis' budget per call is 250 ms: looking for the document and for the right to fetch it may each take one. The rest
# is for a busy machine.
SICK_S = 3.0
# A verbose document of this many tokens is about 700 KB: far above the 256 KiB of a small value.
BIG_TOKENS = 30_000
# More than are tried until a wait is given up, each for TRIED_S.
SPARE, TRIED_S = 100, 0.2
NO_HYDRATION = {"CARAVAN_HYDRATE_CONCURRENCY": "0"}


@pytest.fixture
def own_redis(redis_server: PrivateRedis, tmp_path: Path) -> Iterator[PrivateRedis]:
    """A Redis that a test may stop and kill."""
    folder = tmp_path / "redis"
    folder.mkdir()
    with PrivateRedis(redis_server.binary, folder) as server:
        yield server


@contextmanager
def paused(redis: PrivateRedis) -> Iterator[None]:
    """Redis accepts and says nothing."""
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(redis.pid, signal.SIGCONT)


def timed_show(url: str, model: str, **fields: object) -> tuple[int, str | None, float]:
    started = time.monotonic()
    answer = show(url, model, **fields)
    return answer.status, cache_of(answer), time.monotonic() - started


@pytest.mark.alone
def test_a_paused_redis_costs_little(fakes: FakeFactory, tmp_path: Path, own_redis: PrivateRedis) -> None:
    big = FakeModel("big", verbose_tokens=BIG_TOKENS)
    fake = fakes("one", ["warm", "cold", "colder", big])
    with gateway([fake], tmp_path, own_redis.url, **NO_HYDRATION) as process:
        show(process.url, "warm")
        with paused(own_redis):
            slow = [timed_show(process.url, "cold"), timed_show(process.url, "warm"), timed_show(process.url, "colder")]
            listed(process.url)
        assert [status for status, _, _ in slow] == [200, 200, 200]
        assert [state for _, state, _ in slow] == ["miss", "hit", "miss"]
        assert max(took for _, _, took in slow) < SICK_S, slow


@pytest.mark.alone
def test_a_paused_redis_does_not_hold_up_a_big_document(
    fakes: FakeFactory, tmp_path: Path, own_redis: PrivateRedis
) -> None:
    fake = fakes("one", [FakeModel("big", verbose_tokens=BIG_TOKENS)])
    with gateway([fake], tmp_path, own_redis.url, **NO_HYDRATION) as process:
        with paused(own_redis):
            status, _, took = timed_show(process.url, "big", verbose=True)
        assert (status, took < SICK_S) == (200, True), took


def is_storing(redis: PrivateRedis) -> bool:
    """Does Redis hold a document, a moment after one was asked for?"""
    end = time.monotonic() + TRIED_S
    while b"spare" not in redis.command("KEYS", "*:doc:*"):
        if time.monotonic() > end:
            return False
    return True


@pytest.mark.alone
def test_redis_may_die_and_come_back(fakes: FakeFactory, tmp_path: Path, own_redis: PrivateRedis) -> None:
    fake = fakes("one", ["before", "during", "after", *(f"spare{n}" for n in range(SPARE))])
    with gateway([fake], tmp_path, own_redis.url, **NO_HYDRATION) as process:
        assert cache_of(show(process.url, "before")) == "miss"
        own_redis.kill()
        assert cache_of(show(process.url, "before")) == "hit"
        for model in ("during", "after"):
            status, state, took = timed_show(process.url, model)
            assert (status, state, took < SICK_S) == (200, "miss", True)
        assert cache_of(show(process.url, "during")) == "hit"
        own_redis.start()
        # Each a model that no layer has yet: its document is stored as soon as Redis is found again.
        unseen = iter(range(SPARE))
        until(lambda: show(process.url, f"spare{next(unseen)}").status == 200 and is_storing(own_redis), "stored again")
        assert len(shows(fake, "during")) == 1


def test_everything_works_without_redis(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes("one", [FakeModel("tiny", system="old"), "unseen"])
    with gateway([fake], tmp_path) as process:
        assert [cache_of(show(process.url, "tiny")) for _ in range(3)] == ["miss", "hit", "hit"]
        assert cache_of(show(process.url, "tiny", system="overlay")) == "bypass"
        change(process.url, replace(fake.store.get("tiny"), system="new", digest=derived_digest("new")), fake)
        assert show(process.url, "tiny").json()["system"] == "new"
        fake.kill()
        until(lambda: not listed(process.url), "the dead backend's models left")
        assert cache_of(show(process.url, "tiny")) == "stale"
        assert show(process.url, "unseen").status == 503


def test_a_big_document_is_shared_by_the_workers(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake = fakes("one", [FakeModel("big", verbose_tokens=BIG_TOKENS)])
    changes = {"WEB_CONCURRENCY": "2", **NO_HYDRATION, **PATIENT}
    with gateway([fake], tmp_path, redis_url, **changes) as process:
        answers = [answer for _ in range(2) for answer in process.each(lambda: show(process.url, "big", verbose=True))]
        assert len(answers[0].body) > 256 * 1024
        assert [cache_of(answer) for answer in answers] == ["miss", "hit", "hit", "hit"]
        assert len({answer.body for answer in answers}) == 1
        assert len(shows(fake, "big")) == 1


def test_a_document_larger_than_a_workers_layer_is_served_from_redis(
    fakes: FakeFactory, tmp_path: Path, redis_url: str
) -> None:
    fake = fakes("one", [FakeModel("big", verbose_tokens=BIG_TOKENS)])
    changes = {**NO_HYDRATION, **PATIENT, "CARAVAN_WORKER_CACHE_BYTES": str(128 * 1024)}
    with gateway([fake], tmp_path, redis_url, **changes) as process:
        assert [cache_of(show(process.url, "big", verbose=True)) for _ in range(3)] == ["miss", "hit", "hit"]


def test_a_hit_does_no_http_and_touches_no_sqlite(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    """The application alone, in a process that reports every SQL statement and every new connection."""
    fake = fakes("one", ["tiny"])
    env = environment([fake], redis_url, CARAVAN_RELOAD_INTERVAL="60", **NO_HYDRATION, **PATIENT)
    env["DATA_DIR"] = str(tmp_path / "data")
    with caravan(env, tmp_path, "refresh", "--once") as once:
        assert once.wait() == 0, once.output
    script = tmp_path / "hits.py"
    script.write_text(HITS)
    env["CARAVAN_POLL_INTERVAL"] = "0"
    with Process([sys.executable, str(script)], {**env, "PYTHONPATH": str(ROOT)}, tmp_path) as hits:
        assert hits.wait() == 0, hits.output
        assert "the watch works: True" in hits.output
        assert "hits: 200 of 200" in hits.output
        assert "statements during hits: []" in hits.output
        assert "connections during hits: []" in hits.output
    assert len(shows(fake, "tiny")) == 1


HITS = """
import sqlite3
import sys

handles, statements, connections = [], [], []

def hook(event, args):
    if event == "sqlite3.connect/handle":
        handles.append(args[0])
    elif event in ("sqlite3.connect", "socket.connect"):
        connections.append((event, str(args[-1])))

sys.addaudithook(hook)

from proxy_app import create_app

app = create_app()
client = app.test_client()

def hit():
    return client.post("/api/show", json={"model": "tiny"}, headers={"Host": "localhost"})

assert hit().status_code == 200
for handle in handles:
    try:
        handle.set_trace_callback(statements.append)
        handle.execute("SELECT 1")
    except sqlite3.ProgrammingError:
        pass  # closed
print("the watch works:", bool(statements))
statements.clear()
connections.clear()
states = [hit().headers["X-Caravan-Cache"] for _ in range(200)]
print("hits:", states.count("hit"), "of", len(states))
print("statements during hits:", statements)
print("connections during hits:", connections)
app.extensions["proxy"].close()
"""


def test_a_shows_hydrated_document_is_a_hit_for_the_first_client(
    fakes: FakeFactory, tmp_path: Path, redis_url: str
) -> None:
    fake = fakes("one", ["tiny"])
    with gateway([fake], tmp_path, redis_url, **PATIENT) as process:
        publish(process.url, "fresh", fake)
        until(lambda: all(shows(fake, model) for model in ("fresh", "tiny")), "the hydration asks")
        fake.wait_idle()
        until(lambda: cache_of(show(process.url, "fresh")) == "hit", "a hit")
        assert len(shows(fake, "fresh")) == 1
        until(lambda: cache_of(show(process.url, "tiny")) == "hit", "a hit")
        assert len(shows(fake, "tiny")) == 1
