"""Leases: who is in flight where, over several workers, and what becomes of a dead one's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from proxy_app.store.leases import TTL_S, LeaseKeeper
from proxy_app.store.redis import RedisGate
from tests.fakes.redis import PrivateRedis
from tests.wire.shows import until

MakeKeeper = Callable[[], LeaseKeeper]


@pytest.fixture
def keepers(redis_url: str, tmp_path: Path) -> Iterator[MakeKeeper]:
    """A factory of keepers, each with its own way to Redis, as workers have."""
    with ExitStack() as stack:

        def make() -> LeaseKeeper:
            gate = stack.enter_context(closing(RedisGate(redis_url, tmp_path / "none", 10.0)))
            return stack.enter_context(closing(LeaseKeeper(gate, "test")))

        yield make


def shared(server: PrivateRedis, backend_id: int) -> int:
    return int(server.command("ZCARD", f"{{test}}:inflight:{backend_id}")[1:])


def test_a_single_candidate_is_counted_and_soon_known_to_all(keepers: MakeKeeper, redis_server: PrivateRedis) -> None:
    keeper = keepers()
    lease = keeper.take([7])
    assert (lease.backend_id, keeper.in_flight(7)) == (7, 1)
    until(lambda: shared(redis_server, 7) == 1, "the lease is written")
    lease.release()
    assert keeper.in_flight(7) == 0
    until(lambda: shared(redis_server, 7) == 0, "the lease is ended")


def test_a_release_counts_once(keepers: MakeKeeper) -> None:
    keeper = keepers()
    one, two = keeper.take([1]), keeper.take([1])
    one.release()
    one.release()
    assert keeper.in_flight(1) == 1
    two.release()
    assert keeper.in_flight(1) == 0


def test_equal_backends_get_equal_shares_over_all_workers(keepers: MakeKeeper) -> None:
    workers = [keepers(), keepers()]
    leases = [workers[n % 2].take([1, 2, 3]) for n in range(30)]
    assert Counter(lease.backend_id for lease in leases) == {1: 10, 2: 10, 3: 10}


def test_the_one_with_the_fewest_in_flight_is_next(keepers: MakeKeeper, redis_server: PrivateRedis) -> None:
    one, two = keepers(), keepers()
    leases = [one.take([1, 2]) for _ in range(6)]
    for lease in leases:
        if lease.backend_id == 2:
            lease.release()
    until(lambda: shared(redis_server, 2) == 0, "the leases are ended")
    assert [two.take([1, 2]).backend_id for _ in range(3)] == [2, 2, 2], "the other worker sees it"


def test_leases_of_a_worker_that_ends_are_ended(keepers: MakeKeeper, redis_server: PrivateRedis) -> None:
    keeper = keepers()
    for _ in range(3):
        keeper.take([4])
    until(lambda: shared(redis_server, 4) == 3, "written")
    keeper.close()
    assert shared(redis_server, 4) == 0


def test_leases_of_a_crashed_worker_expire(keepers: MakeKeeper, redis_server: PrivateRedis) -> None:
    keeper = keepers()
    redis_server.command("ZADD", "{test}:inflight:5", "1", "of-a-dead-worker")
    live = [keeper.take([5, 6]) for _ in range(2)]
    assert {lease.backend_id for lease in live} == {5, 6}, "the dead one's lease counts no more"
    ttl = int(redis_server.command("PTTL", "{test}:inflight:5")[1:])
    assert 0 < ttl <= TTL_S * 1000


def test_without_redis_a_workers_own_counts_decide(tmp_path: Path) -> None:
    with (
        closing(RedisGate(None, tmp_path / "none", 0.1)) as gate,
        closing(LeaseKeeper(gate, "test")) as keeper,
    ):
        leases = [keeper.take([1, 2]) for _ in range(8)]
        assert Counter(lease.backend_id for lease in leases) == {1: 4, 2: 4}
        for lease in leases:
            lease.release()
        assert keeper.in_flight(1) == keeper.in_flight(2) == 0
