"""Redis refused, killed, paused, slow, read-only, full, flushed, restarted: no chat fails because of it."""

from __future__ import annotations

import os
import select
import signal
import socket
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.redis import PrivateRedis
from tests.process.faults.site import Site, leases, site
from tests.process.faults.traffic import STREAMS, Reply, Traffic, added_ms, chats, longest_gap_s, p99, tell
from tests.wire.shows import until

# The talkers live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = [pytest.mark.leaky, pytest.mark.alone]

# A call's budget, in seconds, as shipped.
BUDGET_S = 0.25
# What a fault of Redis may add to the first byte in the end, in ms. The promise is 5; a busy machine alone makes more.
ADDED_MS = 60.0
# No stream may stand still for so long: far above what a busy machine does, far below any wait for Redis that blocks.
GAP_S = 3.0
# A stop without streams takes no longer, in seconds.
STOP_S = 8.0
# Four times the shipped budget: what a busy machine holds up for a moment is no fault of Redis.
DEBUG = {"CARAVAN_LOG_LEVEL": "debug", "CARAVAN_REDIS_TIMEOUT": "1"}
AWAY, BACK = "going on without Redis", "Redis is back"


@pytest.fixture(scope="module")
def redis(redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A Redis that the tests of this module may stop and kill."""
    with PrivateRedis(redis_server.binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def shared(redis: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with site(tmp_path_factory.mktemp("site"), redis, **DEBUG) as made:
        made.warm_up()
        yield made


@pytest.fixture
def here(shared: Site) -> Iterator[Site]:
    """The shared product; after each test nothing is in flight and nothing was logged that may not be."""
    yield shared
    shared.assert_calm()


@contextmanager
def paused(redis: PrivateRedis) -> Iterator[None]:
    os.kill(redis.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(redis.pid, signal.SIGCONT)


def assert_unharmed(traffic: Traffic, before: list[Reply], after: list[Reply]) -> None:
    """Nothing failed, no stream stood still, and what the fault costs in the end is next to nothing."""
    assert not traffic.failed
    assert longest_gap_s(traffic.replies) < GAP_S
    assert added_ms(after) < added_ms(before) + ADDED_MS


def times_said(here: Site, text: str) -> int:
    return here.process.output.count(text)


def test_redis_killed_during_load_fails_no_chat(here: Site, redis: PrivateRedis) -> None:
    said, back = times_said(here, AWAY), times_said(here, BACK)
    with here.traffic() as traffic:
        before = traffic.more(60)
        redis.kill()
        at_once = traffic.more(20)
        later = traffic.more(60)
        redis.start()
        until(lambda: times_said(here, BACK) > back, "found again")
        traffic.more(20)
        until(lambda: leases(redis) > 0, "leases are written again")
    tell("before", before), tell("killed", at_once), tell("without Redis", later)
    assert_unharmed(traffic, before, later)
    assert times_said(here, AWAY) == said + 1


def test_redis_paused_during_load_costs_one_budget_once(here: Site, redis: PrivateRedis) -> None:
    with here.traffic() as traffic:
        before = traffic.more(60)
        with paused(redis):
            at_once = traffic.more(20)
            later = traffic.more(60)
            back = times_said(here, BACK)
        until(lambda: times_said(here, BACK) > back, "found again")
        traffic.more(20)
    tell("before", before), tell("paused", at_once), tell("still paused", later)
    assert_unharmed(traffic, before, later)
    # The promise is 300 ms; the rest is for a busy machine.
    assert added_ms(chats(at_once), max) < 1000 * (BUDGET_S + GAP_S)


def test_a_read_only_redis_fails_no_chat(here: Site, redis: PrivateRedis) -> None:
    with here.traffic() as traffic:
        before = traffic.more(40)
        assert redis.command("REPLICAOF", "127.0.0.1", "1").startswith(b"+OK")
        later = traffic.more(60)
        assert redis.command("REPLICAOF", "NO", "ONE").startswith(b"+OK")
        traffic.more(20)
        until(lambda: leases(redis) > 0, "leases are written again")
    tell("read-only", later)
    assert_unharmed(traffic, before, later)


def test_a_full_redis_fails_no_chat(here: Site, redis: PrivateRedis) -> None:
    with here.traffic() as traffic:
        before = traffic.more(40)
        assert redis.command("CONFIG", "SET", "maxmemory", "1").startswith(b"+OK")
        later = traffic.more(60)
        assert redis.command("CONFIG", "SET", "maxmemory", "64mb").startswith(b"+OK")
        traffic.more(20)
        until(lambda: leases(redis) > 0, "leases are written again")
    tell("full", later)
    assert_unharmed(traffic, before, later)


@pytest.mark.parametrize("command", ["FLUSHALL", "SCRIPT FLUSH"])
def test_a_flushed_redis_fails_no_chat_and_is_used_on(here: Site, redis: PrivateRedis, command: str) -> None:
    said = times_said(here, AWAY)
    with here.traffic() as traffic:
        before = traffic.more(40)
        for _ in range(3):
            assert redis.command(*command.split()).startswith(b"+OK")
            later = traffic.more(20)
        until(lambda: leases(redis) > 0, "leases are written again")
    assert_unharmed(traffic, before, later)
    assert times_said(here, AWAY) == said, "an empty Redis is no sick one"


def test_after_all_these_faults_no_lease_is_left(here: Site, redis: PrivateRedis) -> None:
    here.assert_no_leases()


def test_a_stop_waits_for_no_redis(shared: Site, redis: PrivateRedis) -> None:
    """The last test of the shared product."""
    with paused(redis):
        assert shared.process.stop() < STOP_S
        assert shared.process.wait() == 0


def test_a_redis_that_refuses_at_the_start_is_used_once_it_is_there(redis_server: PrivateRedis, tmp_path: Path) -> None:
    late = PrivateRedis(redis_server.binary, tmp_path)
    with site(tmp_path, late) as here:
        here.warm_up()
        assert AWAY in here.process.output
        with late, here.traffic(STREAMS) as traffic:
            until(lambda: leases(late) > 0, "leases are written")
            traffic.more(20)
            assert not traffic.failed
        here.assert_calm()


class SlowLine:
    """A way to a Redis on which everything takes longer.

    Args:
        delay_s: added to everything that goes to Redis, once the test says so.
    """

    def __init__(self, redis: PrivateRedis) -> None:
        self._redis, self.delay_s = redis, 0.0
        self._quit = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, name="slow-line")]

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def __enter__(self) -> SlowLine:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._quit.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._listener.close()

    def _accept(self) -> None:
        while not self._quit.is_set():
            try:
                conn, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._carry, args=(conn,), name="slow-line")
            self._threads.append(thread)
            thread.start()

    def _carry(self, conn: socket.socket) -> None:
        with conn, socket.socket(socket.AF_UNIX) as server:
            server.connect(str(self._redis.socket_path))
            while not self._quit.is_set():
                for source in select.select([conn, server], [], [], 0.1)[0]:
                    if source is conn:
                        self._quit.wait(self.delay_s)
                    try:
                        data = source.recv(65536)
                        (server if source is conn else conn).sendall(data)
                    except OSError:
                        return
                    if not data:
                        return


def test_a_slow_redis_adds_at_most_one_budget(redis: PrivateRedis, tmp_path: Path) -> None:
    redis.flush()
    with SlowLine(redis) as line, site(tmp_path, redis, line.url) as here:
        here.warm_up()
        with here.traffic() as traffic:
            before = traffic.more(40)
            line.delay_s = 0.2
            later = traffic.more(60)
            line.delay_s = 0.0
            traffic.more(20)
        tell("before", before), tell("slow", later)
        assert not traffic.failed
        assert longest_gap_s(traffic.replies) < GAP_S
        assert added_ms(later, statistics.median) < 1000 * BUDGET_S + ADDED_MS
        assert added_ms(later, p99) < 1000 * (BUDGET_S + GAP_S)
        here.assert_calm()
