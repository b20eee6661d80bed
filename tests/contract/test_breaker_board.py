"""Open breakers told from worker to worker, on a real Redis."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from proxy_app.domain import Backend, Fleet, Health, Member
from proxy_app.errors import CacheAway
from proxy_app.routing.breaker import BreakerRules
from proxy_app.services.breakers import Breakers
from proxy_app.store.board import BreakerBoard, Opened
from proxy_app.store.redis import RedisGate

MODEL = "registry.ollama.ai/library/tiny:latest"
# Open for longer than any test takes.
RULES = BreakerRules(failures=2, open_s=500.0)


@pytest.fixture
def board(redis_url: str, tmp_path: Path) -> Iterator[BreakerBoard]:
    with closing(RedisGate(redis_url, tmp_path / "none", 10.0)) as gate:
        yield BreakerBoard(gate, "test")


def worker(**names: int) -> Breakers:
    """The breakers of a worker whose registry numbers the backends in its own way."""
    made = Breakers(RULES)
    members = tuple(Member(Backend(i, name, f"http://{name}", 0), Health("up")) for name, i in names.items())
    made.follow(Fleet(members=members, by_id={member.backend.id: member for member in members}))
    return made


def skips(breakers: Breakers, backend_id: int, other: int, model: str = MODEL) -> bool:
    return breakers.usable([(backend_id, other)], model) == [(other,)]


def test_what_one_worker_saw_all_skip(board: BreakerBoard) -> None:
    here, there = worker(a=1, b=2), worker(b=7, a=8)
    here.failed((1, MODEL))
    here.failed((1, MODEL))
    here.share(board)
    there.share(board)
    assert skips(there, 8, 7)
    assert not skips(there, 8, 7, model="other"), "one model must not take the others with it"


def test_who_answers_again_is_skipped_by_nobody(board: BreakerBoard) -> None:
    here, there = worker(a=1, b=2), worker(a=1, b=2)
    here.lost((1, MODEL), refused=True)
    here.share(board)
    there.share(board)
    assert skips(there, 1, 2)
    there.succeeded((1, MODEL))
    there.share(board)
    here.share(board)
    assert not skips(here, 1, 2)


def test_a_flushed_redis_closes_what_it_forgot(board: BreakerBoard, redis_url: str) -> None:
    here = worker(a=1, b=2)
    here.lost((1, MODEL), refused=True)
    here.share(board)
    with redis.Redis.from_url(redis_url) as client:
        client.flushall()
    here.share(board)
    assert not skips(here, 1, 2)


def test_what_could_not_be_told_is_told_later(redis_url: str, tmp_path: Path, board: BreakerBoard) -> None:
    here, there = worker(a=1, b=2), worker(a=1, b=2)
    here.lost((1, MODEL), refused=True)
    with closing(RedisGate(None, tmp_path / "no.sock", 0.1)) as away, pytest.raises(CacheAway):
        here.share(BreakerBoard(away, "test"))
    assert skips(here, 1, 2), "its own worker skips it all the same"
    here.share(board)
    there.share(board)
    assert skips(there, 1, 2)


def test_a_backend_of_another_fleet_is_nobody(board: BreakerBoard) -> None:
    board.exchange({"stranger": Opened(1, 50.0), f"a {MODEL}": Opened(2, 30.0)}, [])
    here = worker(a=1, b=2)
    here.share(board)
    assert skips(here, 1, 2)


def test_the_entries_fade(board: BreakerBoard, redis_url: str) -> None:
    board.exchange({"a": Opened(1, 50.0)}, [])
    with redis.Redis.from_url(redis_url) as client:
        assert 60_000 < client.pttl("{test}:breakers") <= 180_000
    told = board.exchange({"b": Opened(1, -61.0)}, [])
    assert set(told) == {"a"}, "nobody tried it for a minute: it is forgotten"
    assert 20 < told["a"].left_s <= 50
