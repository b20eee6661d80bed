"""The way to Redis while Redis is well, refused, paused, full and restarted."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import redis

from proxy_app.errors import CacheAway
from proxy_app.store.redis import FAILURES_TO_OPEN, SOCKET_PATH_MAX, RedisGate, private_socket
from tests.fakes.redis import PrivateRedis
from tests.wire.shows import until

# Where Redis is not paused, no call may be late: a good one that a busy machine holds up for a moment stays a good one.
BUDGET_S = 10.0
# Where it is paused, each call costs that much.
PAUSED_S = 1.0
# What a busy machine may add, in seconds.
LATE_S = 4.0


@pytest.fixture
def own(redis_server: PrivateRedis, tmp_path: Path) -> Iterator[PrivateRedis]:
    with PrivateRedis(redis_server.binary, tmp_path) as server:
        yield server


def ping(client: redis.Redis) -> object:
    return client.ping()


def away(gate: RedisGate, *, big: bool = False) -> float:
    """Seconds until a call said that Redis is away."""
    started = time.monotonic()
    with pytest.raises(CacheAway):
        gate.run(ping, big=big)
    return time.monotonic() - started


def test_calls_go_through_while_redis_is_well(own: PrivateRedis, tmp_path: Path) -> None:
    with closing(RedisGate(own.url, tmp_path / "none", BUDGET_S)) as gate:
        assert gate.run(ping) is True
        assert not gate.is_away


def test_a_paused_redis_costs_its_budget_a_few_times_and_then_nothing(own: PrivateRedis, tmp_path: Path) -> None:
    with closing(RedisGate(own.url, tmp_path / "none", PAUSED_S)) as gate:
        until(lambda: answers(gate), "a good call")
        os.kill(own.pid, signal.SIGSTOP)
        try:
            first = [away(gate) for _ in range(FAILURES_TO_OPEN)]
            assert max(first) < PAUSED_S + LATE_S
            assert gate.is_away
            assert sum(away(gate) for _ in range(100)) < 20 * PAUSED_S, "none of them asks"
        finally:
            os.kill(own.pid, signal.SIGCONT)
        until(lambda: not gate.is_away, "Redis is back")
        until(lambda: answers(gate), "a good call")


def answers(gate: RedisGate) -> bool:
    try:
        return bool(gate.run(ping))
    except CacheAway:
        return False


def test_a_dead_redis_is_noticed_and_found_again(own: PrivateRedis, tmp_path: Path) -> None:
    with closing(RedisGate(own.url, tmp_path / "none", BUDGET_S)) as gate:
        gate.run(ping)
        own.kill()
        for _ in range(FAILURES_TO_OPEN):
            away(gate)
        assert gate.is_away
        own.start()
        until(lambda: not gate.is_away, "Redis is back")
        assert gate.run(ping) is True


def test_a_redis_that_answers_with_errors_is_there(own: PrivateRedis, tmp_path: Path) -> None:
    own.command("CONFIG", "SET", "maxmemory", "1")
    with closing(RedisGate(own.url, tmp_path / "none", BUDGET_S)) as gate:
        for _ in range(2 * FAILURES_TO_OPEN):
            with pytest.raises(CacheAway):
                gate.run(lambda client: client.set("k", b"x" * 1000))
        assert not gate.is_away
        assert gate.run(ping) is True


def test_failures_have_to_follow_each_other(own: PrivateRedis, tmp_path: Path) -> None:
    # A good call may take its time on a busy machine: it would be one more failure.
    with closing(RedisGate(own.url, tmp_path / "none", 1.5 * PAUSED_S)) as gate:
        for _ in range(3):
            os.kill(own.pid, signal.SIGSTOP)
            try:
                for _ in range(FAILURES_TO_OPEN - 1):
                    away(gate)
            finally:
                os.kill(own.pid, signal.SIGCONT)
            assert own.command("PING").startswith(b"+PONG")
            assert gate.run(ping) is True
        assert not gate.is_away


def test_slow_big_values_say_nothing_about_redis(own: PrivateRedis, tmp_path: Path) -> None:
    with closing(RedisGate(own.url, tmp_path / "none", BUDGET_S)) as gate:
        own.kill()
        for _ in range(2 * FAILURES_TO_OPEN):
            away(gate, big=True)
        assert not gate.is_away


def test_the_private_redis_is_used_once_its_socket_is_there(redis_server: PrivateRedis, tmp_path: Path) -> None:
    server = PrivateRedis(redis_server.binary, tmp_path)
    with closing(RedisGate(None, server.socket_path, BUDGET_S)) as gate:
        assert gate.is_away
        away(gate)
        with server:
            until(lambda: not gate.is_away, "found")
            assert gate.run(ping) is True


def test_the_private_sockets_path_fits_its_address(tmp_path: Path) -> None:
    assert private_socket(tmp_path) == tmp_path / "redis.sock"
    deep = tmp_path / ("d" * 120)
    short = private_socket(deep)
    assert len(os.fsencode(short)) <= SOCKET_PATH_MAX
    assert private_socket(deep) == short != private_socket(tmp_path / ("e" * 120))


def test_no_secret_of_the_url_is_in_an_error(tmp_path: Path) -> None:
    with closing(RedisGate("redis://user:s3cret@127.0.0.1:1/0", tmp_path / "none", BUDGET_S)) as gate:
        with pytest.raises(CacheAway) as refusal:
            gate.run(ping)
        assert "s3cret" not in str(refusal.value)
