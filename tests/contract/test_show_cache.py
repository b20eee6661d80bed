"""The shared layer of show documents in a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from proxy_app.domain import Digest, ShowEntry, ShowKey
from proxy_app.store.cache import ShowCache
from proxy_app.store.redis import BIG_BYTES, RedisGate
from tests.fakes.redis import PrivateRedis

BUDGET = 1000


@pytest.fixture
def gate(redis_url: str, tmp_path: Path) -> Iterator[RedisGate]:
    with closing(RedisGate(redis_url, tmp_path / "redis.sock", 10.0)) as opened:
        yield opened


@pytest.fixture
def cache(gate: RedisGate) -> ShowCache:
    return ShowCache(gate, "test", BUDGET)


def key(name: str, verbose: bool = False, space: str = "local") -> ShowKey:
    return ShowKey(space, f"registry.ollama.ai/library/{name}:latest", verbose)


def entry(size: int = 100, digest: str = "d", at: float = 5.25) -> ShowEntry:
    return ShowEntry(Digest(digest), at, bytes(n % 251 for n in range(size)))


def test_what_was_put_is_got(cache: ShowCache) -> None:
    assert cache.get(key("m")) is None
    cache.put(key("m"), entry())
    assert cache.get(key("m")) == entry()
    assert cache.get(key("m", verbose=True)) is None
    assert cache.get(key("m", space="cloud")) is None
    assert cache.digests([key("m"), key("n")]) == ["d", None]
    assert cache.digests([]) == []


def test_a_second_put_replaces_the_first(cache: ShowCache) -> None:
    cache.put(key("m"), entry(300, "old"))
    cache.put(key("m"), entry(50, "new"))
    assert cache.get(key("m")) == entry(50, "new")
    assert cache.size_bytes() == (1, 50)


def test_a_big_document_comes_back_whole_and_makes_way_for_a_small_one(gate: RedisGate) -> None:
    cache = ShowCache(gate, "test", 8 * BIG_BYTES)
    for size in (BIG_BYTES, BIG_BYTES + 1, 3 * BIG_BYTES, 10, BIG_BYTES + 5):
        cache.put(key("m"), entry(size))
        assert cache.get(key("m")) == entry(size)
        assert cache.size_bytes() == (1, size)


def test_a_big_document_whose_halves_do_not_fit_is_none(gate: RedisGate, redis_server: PrivateRedis) -> None:
    cache = ShowCache(gate, "test", 8 * BIG_BYTES)
    cache.put(key("m"), entry(2 * BIG_BYTES))
    body = f"{{test}}:show:doc:{key('m')}:body"
    assert redis_server.command("STRLEN", body) == b":%d\r\n" % (2 * BIG_BYTES)
    redis_server.command("SET", body, "half of another one")
    assert cache.get(key("m")) is None
    redis_server.command("DEL", body)
    assert cache.get(key("m")) is None


def test_the_least_recently_used_make_room_and_the_total_stays_right(
    cache: ShowCache, redis_server: PrivateRedis
) -> None:
    for name in "abcde":
        cache.put(key(name), entry(200))
        tick(redis_server)
    assert cache.size_bytes() == (5, BUDGET)
    assert cache.get(key("a")) is not None
    tick(redis_server)
    cache.put(key("f"), entry(300))
    # b and c were the oldest; a was just used.
    assert [name for name in "abcdef" if cache.get(key(name))] == ["a", "d", "e", "f"]
    assert cache.size_bytes() == (4, 900)


def tick(server: PrivateRedis) -> None:
    """Wait until Redis' clock shows another millisecond: the unit of last use."""
    before = milliseconds(server)
    while milliseconds(server) == before:
        pass


def milliseconds(server: PrivateRedis) -> int:
    _, _, seconds, _, micros, _ = server.command("TIME").split(b"\r\n")
    return int(seconds) * 1000 + int(micros) // 1000


def test_a_document_larger_than_the_budget_leaves_no_more_than_itself(cache: ShowCache) -> None:
    # Many times: two documents of one millisecond are equally old.
    for n in range(20):
        cache.put(key("huge"), entry(5 * BUDGET))
        count, total = cache.size_bytes()
        assert (count, total) in ((1, 5 * BUDGET), (0, 0))
        cache.put(key(f"b{n}"), entry(400))
        assert cache.get(key(f"b{n}")) is not None
        assert cache.size_bytes()[1] <= BUDGET


def test_evicted_big_bodies_are_gone_too(gate: RedisGate, redis_server: PrivateRedis) -> None:
    cache = ShowCache(gate, "test", 3 * BIG_BYTES)
    for name in ("a", "b", "c"):
        cache.put(key(name), entry(2 * BIG_BYTES))
        tick(redis_server)
    assert redis_server.command("KEYS", "*:body").count(b":body\r\n") == 1
    assert cache.size_bytes() == (1, 2 * BIG_BYTES)


def test_many_writers_at_once_leave_the_total_right(cache: ShowCache) -> None:
    def write(start: int) -> None:
        for n in range(60):
            cache.put(key(f"m{(start * 7 + n) % 20}"), entry(20 + (n * 13 + start) % 90))

    writers = [threading.Thread(target=write, args=(start,)) for start in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    stored = [found for n in range(20) if (found := cache.get(key(f"m{n}")))]
    assert cache.size_bytes() == (len(stored), sum(len(found.body) for found in stored))
    assert cache.size_bytes()[1] <= BUDGET


def test_dropping_a_model_takes_its_local_documents_alone(cache: ShowCache) -> None:
    for each in (key("gone"), key("gone", verbose=True), key("gone", space="cloud"), key("kept")):
        cache.put(each, entry(100))
    cache.drop([key("gone").canonical])
    assert cache.get(key("gone")) is None
    assert cache.get(key("gone", verbose=True)) is None
    assert cache.get(key("gone", space="cloud")) is not None
    assert cache.get(key("kept")) is not None
    assert cache.size_bytes() == (2, 200)


def test_one_holder_of_a_flights_token(cache: ShowCache) -> None:
    assert cache.take_flight(key("m"), "one", 60_000)
    assert not cache.take_flight(key("m"), "two", 60_000)
    assert cache.take_flight(key("m", verbose=True), "two", 60_000), "another document"
    assert cache.is_flying(key("m"))
    cache.release_flight(key("m"), "two")
    assert cache.is_flying(key("m")), "a token that is not ours stays"
    assert not cache.renew_flight(key("m"), "two", 60_000)
    assert cache.renew_flight(key("m"), "one", 60_000)
    cache.release_flight(key("m"), "one")
    assert cache.take_flight(key("m"), "two", 60_000)


def test_a_token_of_a_dead_holder_expires(cache: ShowCache) -> None:
    cache.take_flight(key("m"), "dead", 50)
    end = time.monotonic() + 15
    while not cache.take_flight(key("m"), "next", 60_000):
        assert time.monotonic() < end
    assert not cache.renew_flight(key("m"), "dead", 60_000), "it cannot come back"


def test_one_refresh_per_cooldown(cache: ShowCache) -> None:
    assert cache.take_cooldown(key("m", space="cloud"), 60_000)
    assert not cache.take_cooldown(key("m", space="cloud"), 60_000)
    assert cache.take_cooldown(key("n", space="cloud"), 60_000)
    assert cache.take_cooldown(key("z"), 0)
    assert cache.take_cooldown(key("z"), 0), "0 is off"


def test_what_was_asked_is_taken_once(cache: ShowCache) -> None:
    cache.note_asked({"cloud:a:p": ("a:cloud", 10.0), "local:b:v": ("b", 11.5)})
    cache.note_asked({"cloud:a:p": ("A:cloud", 12.0)})
    cache.note_asked({})
    assert cache.take_asked() == {"cloud:a:p": ("A:cloud", 12.0), "local:b:v": ("b", 11.5)}
    assert cache.take_asked() == {}


def test_two_prefixes_do_not_see_each_other(gate: RedisGate) -> None:
    one, two = ShowCache(gate, "one", BUDGET), ShowCache(gate, "two", BUDGET)
    one.put(key("m"), entry())
    assert two.get(key("m")) is None
    assert two.size_bytes() == (0, 0)
