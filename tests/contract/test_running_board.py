"""Running requests shown from worker to worker on a real Redis, only while somebody looks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis

from proxy_app.errors import CacheAway, Unavailable
from proxy_app.services.admin.in_flight import MOST_SHOWN, InFlight
from proxy_app.services.relayed import Trace
from proxy_app.services.running import Run, Runs
from proxy_app.store import running as running_module
from proxy_app.store.redis import BIG_BYTES, RedisGate
from proxy_app.store.running import RunningBoard

KEYS = "{test}:running*"


@pytest.fixture
def board(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunningBoard]:
    # Longer than any test takes on a busy machine.
    monkeypatch.setattr(running_module, "SHOWN_S", 15.0)
    monkeypatch.setattr(running_module, "LOOKED_S", 20.0)
    with closing(RedisGate(redis_url, tmp_path / "none", 10.0)) as gate:
        yield RunningBoard(gate, "test")


@pytest.fixture
def direct(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client


def begun(runs: Runs, model: str = "tiny") -> Run:
    return runs.begin(Trace("r", "/api/chat", model, "k"))


def ids(in_flight: InFlight) -> list[str]:
    return [run.id for run in in_flight.running()[0]]


def test_what_one_worker_has_the_others_see(board: RunningBoard) -> None:
    here, there = Runs(), Runs()
    one, two = InFlight(here, board), InFlight(there, board)
    older, newer = begun(here), begun(there)
    newer.at = older.at + 1
    board.look()
    one.share()
    two.share()
    assert ids(one) == ids(two) == [newer.id, older.id]
    here.end(older)
    one.share()
    assert ids(two) == [newer.id]


def test_a_name_that_is_half_a_character_is_shown_as_well(board: RunningBoard) -> None:
    runs = Runs()
    run = begun(runs, "a\ud800b")
    board.look()
    InFlight(runs, board).share()
    assert [each.model for each in InFlight(Runs(), board).running()[0]] == ["a?b"]
    assert run.id


def test_nothing_is_shown_while_nobody_looks(board: RunningBoard, direct: redis.Redis) -> None:
    runs = Runs()
    run = begun(runs)
    InFlight(runs, board).share()
    assert direct.keys(KEYS) == []
    assert run.id


def test_a_worker_without_requests_asks_nothing(board: RunningBoard, direct: redis.Redis) -> None:
    in_flight = InFlight(Runs(), board)
    before = direct.info("commandstats").get("cmdstat_exists", {}).get("calls", 0)
    in_flight.share()
    assert direct.info("commandstats").get("cmdstat_exists", {}).get("calls", 0) == before


def test_everything_fades(board: RunningBoard, direct: redis.Redis) -> None:
    runs = Runs()
    run = begun(runs)
    board.look()
    InFlight(runs, board).share()
    board.cancel("f" * 32)
    times = {key.decode(): direct.pttl(key) for key in direct.keys(KEYS)}
    assert len(times) == 4
    assert all(0 < left_ms <= 30_000 for left_ms in times.values())
    assert run.id


def test_a_worker_that_ends_takes_its_list_away(board: RunningBoard, direct: redis.Redis) -> None:
    runs = Runs()
    run = begun(runs)
    board.look()
    in_flight = InFlight(runs, board)
    in_flight.start()
    in_flight.share()
    assert len(direct.keys(KEYS)) == 3
    in_flight.close()
    assert direct.keys(KEYS) == [b"{test}:running:looked"]
    assert run.id


def test_the_one_who_has_it_ends_it(board: RunningBoard, direct: redis.Redis) -> None:
    here, there = Runs(), Runs()
    one, two = InFlight(here, board), InFlight(there, board)
    mine, other = begun(here), begun(there)
    with ThreadPoolExecutor(1) as pool:
        said = pool.submit(one.cancel, other.id)
        while not said.done():
            two.share()
        assert said.result()
    assert other.waiting.is_interrupted
    assert not mine.waiting.is_interrupted
    assert direct.keys(KEYS) == []


def test_what_nobody_has_cannot_be_ended(board: RunningBoard, direct: redis.Redis) -> None:
    in_flight = InFlight(Runs(), board)
    assert not in_flight.cancel("f" * 32)
    assert not in_flight.cancel("no such id"), "nothing that a client writes gets into Redis"
    assert direct.keys(KEYS) == []


def test_a_list_is_bounded_and_may_be_long(board: RunningBoard) -> None:
    here = Runs()
    kept = [begun(here, "m" * 5000) for _ in range(MOST_SHOWN + 10)]
    here_in_flight, there = InFlight(here, board), InFlight(Runs(), board)
    board.look()
    here_in_flight.share()
    assert len(ids(there)) == MOST_SHOWN < len(kept)
    board.show("big", b"x" * (2 * BIG_BYTES))
    assert len(ids(there)) == MOST_SHOWN, "what cannot be read is skipped"


def test_without_redis_there_is_this_worker(tmp_path: Path) -> None:
    runs = Runs()
    run = begun(runs)
    with closing(RedisGate(None, tmp_path / "none", 0.2)) as gate:
        in_flight = InFlight(runs, RunningBoard(gate, "test"))
        found, is_partial = in_flight.running()
        assert [each.id for each in found] == [run.id]
        assert is_partial
        with pytest.raises(Unavailable, match="Redis is away"):
            in_flight.cancel("f" * 32)
        assert in_flight.cancel(run.id)
        with pytest.raises(CacheAway):
            in_flight.share()
    assert run.waiting.is_interrupted
