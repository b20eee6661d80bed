"""Workers killed, stopped and reloaded under streams, a refresher that is gone, and a clock that jumps."""

from __future__ import annotations

import itertools
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from conformance.fakes.http import fetch
from tests.fakes.redis import PrivateRedis
from tests.process.faults.site import LEASES_S, Site, lease_names, leases, site, stored_leases
from tests.process.faults.traffic import (
    CHATS,
    STREAMS,
    TOKEN_S,
    Held,
    Kind,
    Reply,
    longest_gap_s,
    tell,
)
from tests.product import mark
from tests.wire.shows import until

# The talkers live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = [pytest.mark.leaky, pytest.mark.alone]

STREAM_COUNT = 50
# No stream may stand still for so long: far above what a busy machine does.
GAP_S = 3.0
# How long a stop waits for streams, in seconds, and how long the processes may take after that.
GRACE_S = 8
STOP_S = 8.0
TWO = {"WEB_CONCURRENCY": "2"}


@pytest.fixture(scope="module")
def redis(redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    """A Redis of this module alone, whose leases can be counted."""
    with PrivateRedis(redis_server.binary, tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def shared(redis: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Two workers."""
    with site(tmp_path_factory.mktemp("site"), redis, **TWO) as made:
        made.warm_up()
        yield made


# -- a worker that is killed ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def orphans(shared: Site, redis: PrivateRedis) -> tuple[set[bytes], float]:
    """The leases that a killed worker left behind, and when it was killed.

    Made at once, and looked at last: they need half a minute to go.
    """
    victim, survivor = shared.process.workers
    held, owners = streams_on_both(shared, [victim, survivor])
    victim.kill()
    killed = time.monotonic()
    held.read()
    assert_only_the_victims_suffer(held.ends(), owners, victim.pid)
    shared.wait_idle()
    for talker in shared.talkers:
        talker.token_delay_s = TOKEN_S
    orphaned = list(owners.values()).count(victim.pid)
    until(lambda: len(lease_names(redis)) == orphaned, "the survivor gives its leases back", 10)
    return lease_names(redis), killed


def streams_on_both(here: Site, workers: list[psutil.Process]) -> tuple[Held, dict[bytes, int]]:
    """Streams of six seconds, ten on each worker, and who serves each."""
    held, owners = Held(), {}
    for talker in here.talkers:
        talker.token_delay_s = 2 * TOKEN_S
    for worker in workers:
        # The kernel might give all of them to one.
        with here.process.only(worker):
            for kind in (STREAMS * 3)[:10]:
                reply = held.begin(here.client(), kind, tokens=300)
                assert reply.status == 200
                owners[reply.marker] = worker.pid
    return held, owners


def assert_only_the_victims_suffer(replies: list[Reply], owners: dict[bytes, int], victim: int) -> None:
    assert len(replies) == len(owners)
    for reply in replies:
        if owners[reply.marker] == victim:
            assert (reply.verdict, reply.ended) == ("broken", "cut"), reply
        else:
            assert reply.verdict == "complete", reply
            assert reply.gap_s < GAP_S, reply


def test_a_killed_worker_cuts_its_own_streams_alone_and_is_replaced(
    shared: Site, orphans: tuple[set[bytes], float]
) -> None:
    shared.process.wait_every_worker()
    with shared.traffic() as traffic:
        traffic.more(60)
    assert not traffic.failed
    shared.assert_calm()


# -- a refresher that does not refresh -----------------------------------------------------------


def test_while_the_refresher_stands_still_chats_find_the_backend_that_is_left(shared: Site) -> None:
    lost = shared.talkers[0]
    shared.refresher.signal(signal.SIGSTOP)
    try:
        lost.kill()
        with shared.traffic() as traffic:
            traffic.more(60)
        assert not traffic.failed
        lost.restart()
        with shared.traffic() as traffic:
            traffic.more(20)
        assert not traffic.failed
    finally:
        shared.refresher.signal(signal.SIGCONT)
    shared.wait_listed(mark(lost))
    shared.assert_calm()


def test_a_killed_refresher_comes_back_and_nobody_notices(shared: Site) -> None:
    with shared.traffic(CHATS) as traffic:
        shared.refresher.kill9()
        shared.talkers[0].add_model("afterwards")
        tell("without a refresher", traffic.more(60))
        shared.wait_listed("afterwards:latest", 15)
    assert not traffic.failed
    assert longest_gap_s(traffic.replies) < GAP_S
    shared.assert_calm()


# -- stops and reloads ---------------------------------------------------------------------------


def begin_streams(here: Site, count: int, tokens: int) -> Held:
    held = Held()
    for number in range(count):
        assert held.begin(here.client(), STREAMS[number % len(STREAMS)], tokens).status == 200
    return held


@pytest.fixture(scope="module")
def patient(redis_server: PrivateRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One worker with little grace time, and slow talkers."""
    folder = tmp_path_factory.mktemp("patient")
    with (
        PrivateRedis(redis_server.binary, tmp_path_factory.mktemp("redis")) as redis,
        site(folder, redis, CARAVAN_GRACE=str(GRACE_S)) as made,
    ):
        made.warm_up()
        for talker in made.talkers:
            talker.token_delay_s = 0.1
        yield made


def test_a_reload_fails_no_request_that_runs_and_none_that_comes(patient: Site) -> None:
    before = [worker.pid for worker in patient.process.workers]
    held = begin_streams(patient, STREAM_COUNT, tokens=20)
    held.read()
    patient.process.signal(signal.SIGHUP)
    came = [patient.ask(kind, tokens=2) for kind in itertools.islice(itertools.cycle(CHATS), 14)]
    replies = held.ends()
    assert [reply for reply in replies if reply.verdict != "complete"] == []
    assert longest_gap_s(replies) < GAP_S
    until(
        lambda: not set(before) & {worker.pid for worker in patient.process.workers},
        "the old worker is gone",
        GRACE_S + STOP_S,
    )
    assert [reply for reply in came if reply.verdict != "complete"] == []
    patient.assert_no_leases(10.0)
    patient.wait_idle()
    patient.assert_clean_logs()


def test_a_stop_lets_short_streams_end_and_tells_the_long_ones(patient: Site) -> None:
    long = begin_streams(patient, STREAM_COUNT // 2, tokens=600)
    long.read()
    whole = Held()
    for _ in range(5):
        whole.ask(patient.client(), Kind("/api/chat", False), tokens=600)
    # Last: they run for three seconds, and have to be there when the stop comes.
    short = begin_streams(patient, STREAM_COUNT // 2, tokens=30)
    short.read()
    until(lambda: sum(talker.in_flight for talker in patient.talkers) == STREAM_COUNT + 5, "all are in flight")
    stopped = time.monotonic()
    patient.process.terminate()
    assert [reply for reply in short.ends() if reply.verdict != "complete"] == []
    ends, refused = long.ends(), whole.ends()
    told = time.monotonic() - stopped
    assert {(reply.verdict, reply.ended) for reply in ends} == {("broken", "complete")}, ends[:3]
    assert {reply.verdict for reply in refused} <= {"broken", "refused"}, refused[:3]
    assert 1.5 < told < GRACE_S, "not at once, but before it is killed"
    assert patient.process.wait(GRACE_S + STOP_S) == 0
    patient.process.assert_all_gone(STOP_S)
    patient.wait_idle()
    patient.assert_no_leases(STOP_S)
    patient.assert_clean_logs()


# -- the clock -----------------------------------------------------------------------------------

HOUR_S = 3600
# Python runs this in every process at its start: a file shifts the wall clock, the monotonic one is left alone.
CLOCK = """
import os, time

_real, _path = time.time, os.environ["SHIFT_FILE"]

def shifted():
    with open(_path) as file:
        return _real() + float(file.read() or 0)

time.time = shifted
"""


def test_a_clock_that_jumps_an_hour_expires_nothing_and_fails_nothing(
    redis_server: PrivateRedis, tmp_path: Path
) -> None:
    shift = tmp_path / "shift"
    shift.write_text("0")
    (tmp_path / "sitecustomize.py").write_text(CLOCK)
    changes = {"PYTHONPATH": str(tmp_path), "SHIFT_FILE": str(shift)}
    with PrivateRedis(redis_server.binary, tmp_path) as redis, site(tmp_path, redis, **changes) as here:
        here.warm_up()
        for talker in here.talkers:
            talker.keep_requests(True)
        with here.traffic() as traffic:
            for hours in (1, -1):
                shift.write_text(str(hours * HOUR_S))
                traffic.more(50)
                assert int(fetch(f"{here.url}/api/tags").header("age") or 0) < 60
        assert not traffic.failed
        # Documents stay fresh by their digest, not by their age.
        assert [talker.count("/api/show") for talker in here.talkers] == [0, 0]
        here.assert_calm()
        here.assert_no_leases(10.0)
        assert_plausible_times(here, HOUR_S)


def assert_plausible_times(here: Site, jump_s: float) -> None:
    """The clock really jumped, and no duration shows it."""
    lines = [json.loads(line) for line in here.process.output.splitlines() if '"relayed"' in line]
    assert max(line["ts"] for line in lines) > time.strftime(
        "%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + jump_s / 2)
    )
    took = [line[key] for line in lines for key in ("total_s", "first_byte_s") if line[key] is not None]
    assert min(took) >= 0
    assert max(took) < 60


# -- last, because it takes half a minute --------------------------------------------------------


def test_the_leases_of_a_killed_worker_are_gone_half_a_minute_later(
    shared: Site, redis: PrivateRedis, orphans: tuple[set[bytes], float]
) -> None:
    names, killed = orphans
    left = max(1.0, killed + LEASES_S + 1 - time.monotonic())
    until(lambda: not names & lease_names(redis), "what it left behind is gone", left)
    assert leases(redis) == 0
    # The next request sweeps them away.
    assert shared.ask(CHATS[0]).verdict == "complete"
    until(lambda: stored_leases(redis) == 0, "nothing lies about")
