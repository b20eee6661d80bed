"""`caravan refresh`: what it learns, how it ends, and who takes its place."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from itertools import pairwise
from pathlib import Path

import psutil

from conformance.fakes.faults import Fault, HugeHeader, StallBeforeHeaders, Status, TrickledHeaders
from conformance.fakes.models import derived_digest
from conformance.fakes.ollama import FakeOllama
from proxy_app.domain import Health
from proxy_app.errors import RegistryAway
from proxy_app.settings import BackendSettings
from proxy_app.store.backends import BackendStore
from proxy_app.store.registry import Registry, Snapshot
from tests.conftest import FakeFactory
from tests.fakes import procs
from tests.fakes.procs import Process, is_alive
from tests.product import UNHURRIED, environment, gateway, listed
from tests.wire.shows import shows, until

FALL = 3
# Polls of a test backend per second are ten; this many in a row show that a state stays.
MORE_POLLS = 3
# Where a test says that a promise of 5 s is broken: the rest is for a busy machine.
LATE_S = 40.0
# Far above what a stop takes that waits for nothing, and below everything that it could wait for.
STOP_S = 15.0
# How long somebody else may hold the registry's write lock, in seconds.
LOCK_S = 3.0


class Stage:
    """Refreshers on one data directory."""

    def __init__(self, folder: Path, fakes: list[FakeOllama], redis_url: str = "", **changes: str) -> None:
        self.folder, self.fakes = folder, fakes
        self.data = folder / "data"
        self.env = environment(fakes, redis_url, **{**UNHURRIED, "CARAVAN_POLL_INTERVAL": "0.1", **changes})

    def refresher(self, *arguments: str, **changes: str) -> Process:
        return procs.caravan({**self.env, **changes}, self.folder, "refresh", *arguments)

    def read(self) -> Snapshot | None:
        """What the registry holds; None before there is one."""
        if not (self.data / "caravan.db").exists():
            return None
        try:
            with closing(Registry(self.data, busy_s=1.0)) as registry:
                return registry.snapshot()
        except RegistryAway:
            return None

    def role(self) -> tuple[int, int, int]:
        """(epoch, process, rounds) of the role's holder."""
        with closing(sqlite3.connect(self.data / "caravan.db", timeout=2)) as db:
            epoch, holder, rounds = db.execute("SELECT epoch, holder, rounds FROM roles").fetchone()
        return epoch, int(holder.rpartition(":")[2]), rounds

    def state(self, name: str = "fake") -> str | None:
        rows = self.read()
        if rows is None:
            return None
        ids = {backend.name: backend.id for backend in rows.backends}
        health = rows.health.get(ids.get(name, -1))
        return health.state if health else None

    def health(self, name: str = "fake") -> Health:
        rows = self.read()
        assert rows is not None
        [backend] = [each for each in rows.backends if each.name == name]
        return rows.health[backend.id]

    def since(self, name: str = "fake") -> float:
        return self.health(name).since

    def wait_looked_at(self, name: str = "fake") -> None:
        """Wait for the answers to the first polls of the version and of the cloud, which come by themselves."""
        until(lambda: None not in (self.health(name).version, self.health(name).cloud_disabled), "all is learned")

    def models(self, name: str = "fake") -> set[str]:
        rows = self.read()
        if rows is None:
            return set()
        ids = {backend.id for backend in rows.backends if backend.name == name}
        return {held.name for held in rows.holdings if held.backend_id in ids}

    def wait_state(self, state: str, name: str = "fake", deadline_s: float = 20.0) -> None:
        until(lambda: self.state(name) == state, f"{name} is {state}", deadline_s)


def stop_beside_writing(pid: int, data: Path) -> None:
    """Stop a process while it does not hold the registry's write lock: nobody else could write from then on."""
    process = psutil.Process(pid)
    while True:
        process.suspend()
        until(lambda: process.status() == psutil.STATUS_STOPPED, "it stands still")
        try:
            with locked(data):
                return
        except sqlite3.OperationalError:
            process.resume()


def more_polls(fake: FakeOllama, count: int = MORE_POLLS) -> None:
    """Let the refresher poll some more times."""
    fake.wait_for("/api/tags", fake.count("/api/tags") + count)


def test_the_first_probe_decides_and_the_catalogue_is_learned(fakes: FakeFactory, tmp_path: Path) -> None:
    up, down = fakes("up", ["tiny", "NS/Other:v1"], version="0.32.1"), fakes("down")
    up.load_model("tiny")
    down.kill()
    stage = Stage(tmp_path, [up, down])
    with stage.refresher():
        stage.wait_state("up", "up")
        stage.wait_state("down", "down")
        until(lambda: stage.models("up") == {"tiny:latest", "NS/Other:v1"}, "the models")
        rows = stage.read()
        assert rows is not None
        until(lambda: len((stage.read() or rows).loaded) == 1, "what is loaded")
        stage.wait_looked_at("up")
        assert stage.health("up").version == "0.32.1"
        assert stage.health("up").cloud_disabled is False
        assert "refused" in (stage.health("down").error or "")


def test_fewer_failures_than_the_limit_change_nothing(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as process:
        stage.wait_state("up")
        since = stage.since()
        rule = fake.fault("/api/tags", Status(500), times=FALL - 1)
        until(lambda: rule.played == FALL - 1, "the failures")
        more_polls(fake)
        assert (stage.state(), stage.since()) == ("up", since)
        assert "is down" not in process.output


def test_failures_that_are_interrupted_by_a_success_do_not_add_up(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as process:
        stage.wait_state("up")
        for _ in range(2):
            rule = fake.fault("/api/tags", Status(500), times=FALL - 1)
            until(lambda rule=rule: rule.played == FALL - 1, "the failures")
            more_polls(fake, 2)
        assert "is down" not in process.output


def test_a_dead_backend_is_marked_down_keeps_its_models_and_is_back_within_two_polls(
    fakes: FakeFactory, tmp_path: Path
) -> None:
    fake, go = fakes(models=["tiny"]), threading.Event()
    stage = Stage(tmp_path, [fake], CARAVAN_POLL_TIMEOUT="30")
    with stage.refresher():
        stage.wait_state("up")
        fake.kill()
        stage.wait_state("down")
        assert stage.models() == {"tiny:latest"}, "what it held is remembered"
        fake.forget_requests()
        # Two polls have to do: no later one is answered.
        fake.fault("/api/tags", StallBeforeHeaders(go), times=None, when=lambda _: fake.count("/api/tags") > 2)
        fake.restart()
        stage.wait_state("up")
        go.set()


def test_what_a_backend_held_is_forgotten_after_its_time(fakes: FakeFactory, tmp_path: Path) -> None:
    fake, other = fakes(models=["tiny"]), fakes("other", ["rest"])
    stage = Stage(tmp_path, [fake, other], CARAVAN_FORGET_AFTER="1")
    with stage.refresher():
        until(lambda: stage.models() == {"tiny:latest"}, "learned")
        fake.kill()
        stage.wait_state("down")
        until(lambda: stage.models() == set(), "forgotten")
        fake.restart()
        until(lambda: stage.models() == {"tiny:latest"}, "learned again")
        assert stage.models("other") == {"rest:latest"}


def test_a_model_that_drifted_is_told_once(fakes: FakeFactory, tmp_path: Path) -> None:
    one, two = fakes("one", ["same", "tiny"]), fakes("two", ["same", "tiny"])
    stage = Stage(tmp_path, [one, two])
    with stage.refresher() as process:
        stage.wait_state("up", "one")
        stage.wait_state("up", "two")
        two.set_digest("tiny", "f" * 64)
        process.wait_output("tiny:latest differs from the preferred one on two")
        more_polls(two)
        assert process.output.count("differs") == 1


def test_removed_models_and_backends_leave_the_registry(fakes: FakeFactory, tmp_path: Path) -> None:
    one, two = fakes("one", ["tiny", "old"]), fakes("two")
    stage = Stage(tmp_path, [one, two])
    with stage.refresher():
        until(lambda: stage.models("one") == {"tiny:latest", "old:latest"}, "learned")
        one.remove_model("old")
        until(lambda: stage.models("one") == {"tiny:latest"}, "the model is gone")
    with Stage(tmp_path, [one]).refresher():
        until(lambda: len((stage.read() or Snapshot((), {}, (), (), (0, 0))).backends) == 1, "the backend is gone")
        rows = stage.read()
        assert rows is not None
        assert {held.backend_id for held in rows.holdings} == {rows.backends[0].id} == set(rows.health)


def test_a_quiet_fleet_writes_nothing_but_beats(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    fake.load_model("tiny")
    stage = Stage(tmp_path, [fake])
    with stage.refresher():
        until(lambda: len((stage.read() or Snapshot((), {}, (), (), (0, 0))).loaded) == 1, "all is learned")
        # Every poll has had its first answer, the slow ones too.
        until(lambda: stays(stage, fake), "nothing changes any more", 30.0)
        before, (_, _, rounds) = stage.read(), stage.role()
        more_polls(fake, 16)
        until(lambda: stage.role()[2] > rounds, "it beats")
        assert before == stage.read()


def stays(stage: Stage, fake: FakeOllama) -> bool:
    """Does the registry stay as it is for some polls?"""
    before = stage.read()
    more_polls(fake, 8)
    return stage.read() == before


BAD_LISTINGS: dict[str, Fault] = {
    "no JSON": Status(200, "<html>"),
    "no object": Status(200, "[]"),
    "no list": Status(200, '{"models":{"a":1}}'),
    "no records": Status(200, '{"models":[1,2]}'),
    "deep": Status(200, '{"models":' + "[" * 100_000),
    "huge header": HugeHeader(200_000),
    "trickle": TrickledHeaders(0.1),
    "silence": StallBeforeHeaders(),
    "error": Status(500),
    "redirect": Status(302, headers=(("Location", "http://127.0.0.1:9/"),)),
}


def test_bad_backends_are_down_and_delay_nobody(fakes: FakeFactory, tmp_path: Path) -> None:
    good = fakes("good")
    bad = {name.replace(" ", "-"): fault for name, fault in BAD_LISTINGS.items()}
    servers = {name: fakes(name) for name in bad}
    for name, server in servers.items():
        server.fault("/api/tags", bad[name], times=None)
    hole = fakes("hole")
    hole.black_hole()
    stage = Stage(tmp_path, [*servers.values(), hole, good], CARAVAN_POLL_TIMEOUT="5", CARAVAN_CONNECT_TIMEOUT="5")
    with stage.refresher() as process:
        stage.wait_state("up", "good")
        for name in (*servers, "hole"):
            stage.wait_state("down", name, 30.0)
        # In turn, it would have been known after them.
        assert stage.since("good") < min(stage.since(name) for name in ("silence", "trickle", "hole"))
        good.forget_requests()
        good.add_model("new")
        until(lambda: "new:latest" in stage.models("good"), "a new model")
        more_polls(good, 5)
        at = [request.at for request in good.requests_for("/api/tags")]
        assert max(later - sooner for sooner, later in pairwise(at)) < 5.0
        assert "Traceback" not in process.output


def test_records_without_a_usable_name_are_left_out(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    records = [{"name": "ok:1", "digest": "d"}, {"name": ""}, {"name": 5}, {}, {"name": "a b"}, {"model": "ok:2"}]
    fake.fault("/api/tags", Status(200, json.dumps({"models": records})), times=None)
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as process:
        until(lambda: {"ok:1", "ok:2"} <= stage.models(), "the good ones")
        assert stage.state() == "up"
        assert "Traceback" not in process.output


def test_a_server_that_blocks_on_ps_is_alive(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    fake.fault("/api/ps", StallBeforeHeaders(), times=None)
    stage = Stage(tmp_path, [fake], CARAVAN_POLL_TIMEOUT="1.5")
    with stage.refresher():
        stage.wait_state("up")
        # More than the failures that mark a backend down.
        fake.wait_for("/api/ps", FALL + 2, 30.0)
        fake.add_model("new")
        until(lambda: "new:latest" in stage.models(), "still polled")
        assert stage.state() == "up"


def test_an_old_server_without_status_is_alive(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    fake.fault("/api/status", Status(404, "404 page not found"), times=None)
    stage = Stage(tmp_path, [fake])
    with stage.refresher():
        stage.wait_state("up")
        fake.wait_for("/api/status", 2)
        more_polls(fake)
        assert stage.state() == "up"


def test_hydration_asks_four_at_a_time_and_for_each_model_once(
    fakes: FakeFactory, tmp_path: Path, redis_url: str
) -> None:
    fake, go = fakes(models=[f"m{n}" for n in range(12)]), threading.Event()
    fake.fault("/api/show", StallBeforeHeaders(go), times=None)
    stage = Stage(tmp_path, [fake], redis_url)
    with stage.refresher():
        fake.wait_for("/api/show", 4)
        more_polls(fake)
        assert fake.count("/api/show") == 4
        go.set()
        fake.wait_for("/api/show", 12)
        fake.wait_idle()
        more_polls(fake)
        assert sorted(each.json()["model"] for each in fake.requests_for("/api/show")) == sorted(
            f"m{n}:latest" for n in range(12)
        )


def test_hydration_follows_a_new_digest(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake = fakes(models=["tiny", "other"])
    stage = Stage(tmp_path, [fake], redis_url)
    with stage.refresher():
        fake.wait_for("/api/show", 2)
        fake.wait_idle()
        fake.set_digest("tiny", derived_digest("new"))
        fake.wait_for("/api/show", 3)
        more_polls(fake)
        assert (len(shows(fake, "tiny")), len(shows(fake, "other"))) == (2, 1)


def test_one_bad_model_stops_neither_hydration_nor_polls(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake = fakes(models=[f"m{n}" for n in range(8)])
    fake.fault("/api/show", StallBeforeHeaders(), times=None, when=lambda request: b"m0" in request.body)
    fake.fault("/api/show", Status(500), times=None, when=lambda request: b"m1" in request.body)
    stage = Stage(tmp_path, [fake], redis_url, CARAVAN_HYDRATE_TIMEOUT="1")
    with stage.refresher():
        until(lambda: all(shows(fake, f"m{n}") for n in range(8)), "every model is asked for")
        more_polls(fake)
        assert stage.state() == "up"


def test_a_backend_that_is_removed_and_added_between_two_looks_is_learned_again(
    fakes: FakeFactory, tmp_path: Path
) -> None:
    stage, spare = Stage(tmp_path, [fakes("fake")]), fakes("spare")
    with stage.refresher() as process:
        stage.wait_state("up")
        with closing(Registry(stage.data, 5.0)) as registry:
            backends = BackendStore(registry)
            assert backends.add(BackendSettings("spare", spare.url))
            until(lambda: bool(stage.models("spare")), "its models are known")
            stage.wait_looked_at("spare")
            stop_beside_writing(process.pid, stage.data)
            assert backends.remove("spare")
            assert backends.add(BackendSettings("spare", spare.url))
            process.child.send_signal(signal.SIGCONT)
            stage.wait_state("up", "spare")
            until(lambda: bool(stage.models("spare")), "its models are known")


def test_a_stop_waits_for_no_poll(fakes: FakeFactory, tmp_path: Path) -> None:
    hung, hole, good = fakes("hung"), fakes("hole"), fakes("good")
    hung.pause()
    hole.black_hole()
    stage = Stage(tmp_path, [hung, hole, good], CARAVAN_POLL_TIMEOUT="30", CARAVAN_CONNECT_TIMEOUT="30")
    with stage.refresher() as process:
        hung.wait_for("/api/tags")
        stage.wait_state("up", "good")
        assert process.stop() < STOP_S
        assert process.child.returncode == 0
        assert "Traceback" not in process.output


def test_a_stop_waits_for_no_hydration(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    fake = fakes(models=[f"m{n}" for n in range(6)])
    fake.fault("/api/show", StallBeforeHeaders(), times=None)
    stage = Stage(tmp_path, [fake], redis_url, CARAVAN_HYDRATE_TIMEOUT="30")
    with stage.refresher() as process:
        fake.wait_for("/api/show", 4)
        assert process.stop() < STOP_S


def test_once_does_one_round_and_hydrates(fakes: FakeFactory, tmp_path: Path, redis_url: str) -> None:
    up, down = fakes("up", ["one", "two"]), fakes("down")
    down.kill()
    stage = Stage(tmp_path, [up, down], redis_url)
    with stage.refresher("--once") as process:
        assert process.wait() == 0, process.output
    assert (stage.state("up"), stage.state("down")) == ("up", "down")
    assert stage.models("up") == {"one:latest", "two:latest"}
    assert up.count("/api/tags") == 1
    assert up.count("/api/show") == 2


def test_once_works_with_polling_off(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    with stage.refresher("--once", CARAVAN_POLL_INTERVAL="0") as process:
        assert process.wait() == 0, process.output
    assert stage.models() == {"tiny:latest"}


def test_once_marks_a_backend_down_by_a_single_answer(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    for state in ("up", "down", "up"):
        (fake.kill if state == "down" else fake.restart)()
        with stage.refresher("--once") as process:
            assert process.wait() == 0, process.output
        assert stage.state() == state


def test_two_refreshers_are_one_leader_and_one_successor(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as one, stage.refresher() as two:
        stage.wait_state("up")
        epoch, pid, _ = stage.role()
        leader, successor = (one, two) if pid == one.pid else (two, one)
        assert pid == leader.pid
        fake.forget_requests()
        more_polls(fake, 5)
        assert stage.role()[:2] == (epoch, pid), "the other one waits"
        leader.kill9()
        until(lambda: stage.role()[1] == successor.pid, "the successor takes over")
        assert stage.role()[0] > epoch
        fake.add_model("new")
        until(lambda: "new:latest" in stage.models(), "the successor learns")


def test_a_stopped_leader_is_taken_over_and_writes_no_old_news_when_resumed(fakes: FakeFactory, tmp_path: Path) -> None:
    """Takes 11 s: a holder counts as dead when its beat is 10 s old."""
    fake = fakes(models=["tiny", "old"])
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as one, stage.refresher() as two:
        until(lambda: "old:latest" in stage.models(), "learned")
        epoch, pid, _ = stage.role()
        leader, successor = (one, two) if pid == one.pid else (two, one)
        # With a fresh beat: its age at the stop would count.
        rounds = stage.role()[2]
        until(lambda: stage.role()[2] > rounds, "it beats")
        stop_beside_writing(leader.pid, stage.data)
        try:
            stopped = time.monotonic()
            fake.remove_model("old")
            until(lambda: stage.role()[1] == successor.pid, "taken over", 30.0)
            assert time.monotonic() - stopped > 6.0, "not while its beat was fresh"
            assert stage.role()[0] == epoch + 1
            until(lambda: stage.models() == {"tiny:latest"}, "the successor's news")
        finally:
            leader.signal(signal.SIGCONT)
        leader.wait_output("another refresher has taken over")
        more_polls(fake, 5)
        assert stage.models() == {"tiny:latest"}
        assert stage.role()[1] == successor.pid, "the role stays where it went"


@contextmanager
def locked(data: Path) -> Iterator[None]:
    """Another process holds the registry's write lock."""
    with closing(sqlite3.connect(data / "caravan.db", timeout=LOCK_S, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        yield


def test_a_locked_registry_is_said_once_and_nothing_is_lost(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as process:
        stage.wait_state("up")
        with locked(stage.data):
            fake.add_model("meanwhile")
            process.wait_output("is locked by another process")
            more_polls(fake, 8)
        until(lambda: "meanwhile:latest" in stage.models(), "written later")
        assert process.output.count("is locked by another process") == 1
        assert process.alive


def test_failures_after_a_lock_are_counted_like_any_others(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake], CARAVAN_FALL="60")
    with stage.refresher() as process:
        stage.wait_state("up")
        since = stage.since()
        with locked(stage.data):
            fake.add_model("meanwhile")
            process.wait_output("is locked by another process")
            rule = fake.fault("/api/tags", Status(500), times=None)
            until(lambda: rule.played >= 2, "failures during the lock")
        played = rule.played
        until(lambda: rule.played >= played + 6, "failures after the lock")
        rule.remove()
        more_polls(fake)
        assert "is down" not in process.output
        assert (stage.state(), stage.since()) == ("up", since)


def test_a_stop_waits_for_no_lock(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as process:
        stage.wait_state("up")
        with locked(stage.data):
            process.wait_output("is locked by another process")
            assert process.stop() < STOP_S


# -- the refresher as a worker's child -------------------------------------------------------------


def the_child(process: Process) -> psutil.Process:
    """The one that there is in the end: of two workers that began at the same time one yields."""
    process.wait_until(lambda: child_of(process) is not None, "a worker's child")
    child = child_of(process)
    assert child is not None
    return child


def child_of(process: Process) -> psutil.Process | None:
    found = [each for each in process.named("refresh --child") if is_alive(each)]
    return found[0] if len(found) == 1 else None


def test_gunicorn_alone_has_a_catalogue_within_five_seconds(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    started = time.monotonic()
    with procs.gunicorn(stage.env, tmp_path) as process:
        process.wait_ready("/livez")
        process.wait_until(lambda: listed(process.url) == {"tiny:latest"}, "the catalogue")
        assert time.monotonic() - started < LATE_S, "5 s after the worker began to serve"


def test_a_killed_child_is_replaced(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    with gateway([fake], tmp_path) as process:
        child = the_child(process)
        child.kill()
        killed = time.monotonic()
        process.wait_until(lambda: child_of(process) not in (None, child), "another child")
        fake.add_model("new")
        process.wait_until(lambda: "new:latest" in listed(process.url), "it polls")
        assert time.monotonic() - killed < LATE_S


def test_a_worker_takes_its_child_with_it_and_another_worker_starts_one(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    with gateway([fake], tmp_path, WEB_CONCURRENCY="2") as process:
        child = the_child(process)
        owner = child.parent()
        assert owner is not None
        owner.kill()
        killed = time.monotonic()
        until(lambda: not is_alive(child), "the child dies with its worker")
        process.wait_until(lambda: child_of(process) is not None, "another worker's child")
        fake.add_model("new")
        process.wait_each(lambda: "new:latest" in listed(process.url), "it polls")
        assert time.monotonic() - killed < LATE_S


def test_no_worker_starts_a_refresher_beside_a_running_one(fakes: FakeFactory, tmp_path: Path) -> None:
    fake = fakes()
    stage = Stage(tmp_path, [fake])
    with stage.refresher() as refresher:
        stage.wait_state("up")
        with procs.gunicorn({**stage.env, "WEB_CONCURRENCY": "2"}, tmp_path) as process:
            process.wait_ready()
            # As long as it takes a guardian to start one.
            deadline = time.monotonic() + 4.0
            while time.monotonic() < deadline:
                assert process.named("refresh") == []
                more_polls(fake, 2)
            assert stage.role()[1] == refresher.pid
            refresher.kill9()
            process.wait_until(lambda: child_of(process) is not None, "a worker's child")


def test_a_stopped_child_is_replaced(fakes: FakeFactory, tmp_path: Path) -> None:
    """Takes 13 s: its beat has to grow 10 s old first."""
    fake = fakes()
    with gateway([fake], tmp_path) as process:
        child = the_child(process)
        stop_beside_writing(child.pid, tmp_path / "data")
        try:
            fake.add_model("new")
            process.wait_until(lambda: "new:latest" in listed(process.url), "somebody else polls", 40.0)
        finally:
            if is_alive(child):
                os.kill(child.pid, signal.SIGCONT)
