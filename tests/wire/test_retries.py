"""What is repeated, when and how often: fresh tries, breakers for backends and models, and the retry budget."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from conformance.fakes import faults
from conformance.fakes.http import RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.recorded import RecordedRequest
from proxy_app.routing.budget import LEAST
from tests.fakes.redis import PrivateRedis
from tests.product import INFERENCE, NO_BREAKER, PATIENT, SELDOM_POLLED, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

MODELS = ("tiny", "small")
# Breakers that open as shipped, and stay open for the length of a test.
STAYS_OPEN = {"CARAVAN_BREAKER_OPEN": "60"}
FAILURES = 5


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("retries"), models=MODELS, **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


def ask(site: Stand, model: str = "tiny", **more: Any) -> RawResponse:
    return site.post("/api/chat", question("/api/chat", model, **more))


def answered_by(answer: RawResponse) -> str:
    """The name of the fake that gave a good answer."""
    assert (answer.status, answer.ended) == (200, "complete"), answer
    text = "".join(record["message"]["content"] for record in answer.lines())
    return text.removeprefix("Hello from ").removesuffix(".")


def of_model(name: str) -> Callable[[RecordedRequest], bool]:
    return lambda request: request.json()["model"] == name


# --- fresh tries ---------------------------------------------------------------------------------


def open_idle_connections(site: Stand, fake: FakeOllama, count: int) -> None:
    """Leave so many connections to a fake in Caravan's pool, each used once."""
    answer = threading.Event()
    fake.fault("/api/chat", faults.StallBeforeHeaders(answer), times=count)
    with ThreadPoolExecutor(count) as pool:
        asked = [pool.submit(ask, site) for _ in range(count)]
        fake.wait_for("/api/chat", count)
        answer.set()
        assert [answered_by(each.result()) for each in asked] == [fake.name] * count
    fake.wait_idle()
    fake.forget_requests()


@pytest.mark.parametrize("death", [faults.EofBeforeHeaders, faults.RstBeforeHeaders], ids=lambda fault: fault.__name__)
def test_where_all_idle_connections_are_stale_a_request_gets_one_fresh_one(
    site: Stand, death: type[faults.Fault]
) -> None:
    a, _ = site.fakes
    open_idle_connections(site, a, 4)
    # What was open before dies at its next use, as behind a load balancer that forgot it.
    a.fault("/api/chat", death(), times=None, when=lambda request: request.nth > 1)
    assert answered_by(ask(site)) == "a"
    assert [request.nth > 1 for request in a.requests_for("/api/chat")] == [True, False]


def test_a_fresh_connection_that_dies_is_not_tried_a_second_time(site: Stand) -> None:
    a, b = site.fakes
    a.kill()
    a.restart()
    site.wait_seen()
    a.fault("/api/chat", faults.RstBeforeHeaders(), times=None)
    # The polls have a connection of their own; the worker has none left.
    assert answered_by(ask(site)) == "b"
    assert [request.nth for request in a.requests_for("/api/chat")] == [1]
    assert b.count("/api/chat") == 1


def test_a_fresh_try_that_dies_too_is_the_last_one_there(site: Stand) -> None:
    a, _ = site.fakes
    open_idle_connections(site, a, 3)
    a.fault("/api/chat", faults.EofBeforeHeaders(), times=None)
    assert answered_by(ask(site)) == "b"
    assert [request.nth > 1 for request in a.requests_for("/api/chat")] == [True, False]


def test_a_repeated_request_is_the_same_to_the_byte(site: Stand) -> None:
    for path in INFERENCE:
        site.fakes[0].fault(path, faults.Error500(), times=1)
        site.post(path, headers={"X-Request-Id": "once", "X-Extra": "kept"})
        (first,), (second,) = (fake.requests_for(path) for fake in site.fakes)
        assert (first.method, first.path, first.body) == (second.method, second.path, second.body)
        own = {"host", "content-length"}
        ours = [[pair for pair in each.headers if pair[0].lower() not in own] for each in (first, second)]
        assert ours[0] == ours[1]


@pytest.mark.parametrize("status", [400, 405, 409, 413, 415, 422])
def test_what_is_the_clients_own_fault_is_never_repeated(site: Stand, status: int) -> None:
    site.fakes[0].fault("/api/chat", faults.Status(status, b'{"error":"yours"}'))
    answer = ask(site)
    assert (answer.status, answer.json()) == (status, {"error": "yours"})
    assert site.counts("/api/chat") == [1, 0]


def test_a_model_that_nobody_hosts_is_asked_of_nobody(site: Stand) -> None:
    assert ask(site, "nope").status == 404
    assert site.counts("/api/chat") == [0, 0]


# --- breakers ------------------------------------------------------------------------------------


@contextmanager
def fresh(folder: Path, names: str = "ab", **changes: str) -> Iterator[Stand]:
    """A product of its own: what its breakers know is of one test."""
    with stand(folder, names, MODELS, **{**STAYS_OPEN, **changes}) as made:
        yield made


def test_a_model_that_fails_leaves_the_others_of_its_backend_alone(tmp_path: Path) -> None:
    with fresh(tmp_path) as two:
        a, b = two.fakes
        a.fault("/api/chat", faults.Error500("no room in memory"), times=None, when=of_model("tiny"))
        assert {answered_by(ask(two)) for _ in range(FAILURES + 3)} == {"b"}
        # The last three found it skipped.
        assert a.count("/api/chat") == FAILURES
        assert answered_by(ask(two, "small")) == "a"
        # Another spelling is the same model.
        assert answered_by(ask(two, "TINY:latest")) == "b"
        assert a.count("/api/chat") == FAILURES + 1
        # And on another route too.
        assert two.post("/api/generate").complete
        assert (a.count("/api/generate"), b.count("/api/generate")) == (0, 1)


def test_connections_that_are_lost_are_the_whole_backends_failure(tmp_path: Path) -> None:
    with fresh(tmp_path) as two:
        a, _ = two.fakes
        a.fault("/api/chat", faults.RstBeforeHeaders(), times=None, when=of_model("tiny"))
        for _ in range(FAILURES):
            assert answered_by(ask(two)) == "b"
        asked = a.count("/api/chat")
        assert answered_by(ask(two, "small")) == "b"
        assert a.count("/api/chat") == asked


def test_streams_that_break_off_are_their_models_failure(tmp_path: Path) -> None:
    with fresh(tmp_path) as two:
        a, _ = two.fakes
        a.token_delay_s = 0.05
        a.fault("/api/chat", faults.StreamThen(2, faults.Eof), times=None, when=of_model("tiny"))
        for _ in range(FAILURES):
            assert "error" in ask(two).lines()[-1]
        assert answered_by(ask(two)) == "b"
        assert answered_by(ask(two, "small")) == "a"


LOAD_OR_THE_CLIENTS_FAULT: dict[str, faults.Fault] = {
    "503 busy": faults.Refuse503Busy(),
    "429": faults.Status(429, '{"error":"slow down"}'),
    "400": faults.Status(400, '{"error":"yours"}'),
    "404": faults.Status(404, '{"error":"model \'tiny\' not found"}'),
}


def test_load_and_the_clients_own_faults_open_no_breaker(tmp_path: Path) -> None:
    with fresh(tmp_path, CARAVAN_BREAKER_FAILURES="2") as two:
        a, _ = two.fakes
        for name, fault in LOAD_OR_THE_CLIENTS_FAULT.items():
            rule = a.fault("/api/chat", fault, times=6)
            for _ in range(6):
                ask(two)
            assert rule.played == 6, name
            assert answered_by(ask(two)) == "a", name


def test_where_all_are_out_the_one_that_recovers_first_is_tried(tmp_path: Path) -> None:
    with fresh(tmp_path) as two:
        a, b = two.fakes
        for fake, model in ((b, "only-b"), (a, "only-a")):
            fake.fault("/api/chat", faults.RstBeforeHeaders(), times=None)
            for _ in range(FAILURES):
                assert ask(two, model).status == 502
            fake.clear_faults()
        # Both are skipped, for a minute; b has been so for longer.
        before = a.count("/api/chat")
        assert answered_by(ask(two)) == "b"
        # It answered, and is trusted again; a is still out.
        assert answered_by(ask(two)) == "b"
        assert a.count("/api/chat") == before


def test_a_breaker_is_no_error_while_somebody_else_is_eligible(tmp_path: Path) -> None:
    with fresh(tmp_path, "abc") as three:
        a, b, _ = three.fakes
        for fake in (a, b):
            fake.fault("/api/chat", faults.RstBeforeHeaders(), times=None)
        assert {answered_by(ask(three)) for _ in range(3 * FAILURES)} == {"c"}


def test_half_open_takes_one_real_request_at_a_time(tmp_path: Path) -> None:
    with fresh(tmp_path, CARAVAN_BREAKER_OPEN="0.2") as two, ThreadPoolExecutor(1) as pool:
        a, _ = two.fakes
        a.fault("/api/chat", faults.RstBeforeHeaders(), times=None)
        for _ in range(FAILURES):
            assert answered_by(ask(two)) == "b"
        a.clear_faults()
        answer = threading.Event()
        a.fault("/api/chat", faults.StallBeforeHeaders(answer), times=None)
        a.forget_requests()
        trial = wait_for_trial(two, a, pool)
        try:
            assert [answered_by(ask(two)) for _ in range(10)] == ["b"] * 10
            assert a.count("/api/chat") == 1
        finally:
            answer.set()
        assert answered_by(trial.result()) == "a"
        assert answered_by(ask(two)) == "a"


def test_half_open_takes_one_however_many_come_at_once(
    tmp_path: Path, redis_server: PrivateRedis, redis_url: str
) -> None:
    """Between equal backends Redis is asked who has less to do; meanwhile others come."""
    equal = {"priority": 0}
    changes = {"CARAVAN_BREAKER_OPEN": "1", **SELDOM_POLLED, **PATIENT}
    with fresh(tmp_path, redis_url=redis_url, backends=equal, **changes) as two, ThreadPoolExecutor(30) as pool:
        a, _ = two.fakes
        a.fault("/api/chat", faults.RstBeforeHeaders(), times=None)
        two.process.wait_until(lambda: skipped(two, a), "nobody asks it any more")
        a.clear_faults()
        answer = threading.Event()
        a.fault("/api/chat", faults.StallBeforeHeaders(answer), times=None)
        a.forget_requests()
        asked: list[Future[RawResponse]] = []

        def under_way() -> int:
            return sum(not each.done() for each in asked)

        try:
            with closing(redis.Redis.from_url(redis_server.url)) as client:
                while not a.count("/api/chat"):
                    # Within the patience that is had with Redis.
                    client.execute_command("CLIENT", "PAUSE", "100")
                    asked += [pool.submit(ask, two) for _ in range(30)]
                    # One waits at a, if one was let through: all others have their answer.
                    two.process.wait_until(lambda: under_way() == a.count("/api/chat"), "the others are answered")
            assert a.count("/api/chat") == 1
        finally:
            answer.set()
        assert {answered_by(each.result()) for each in asked} == {"a", "b"}


def wait_for_trial(site: Stand, fake: FakeOllama, pool: ThreadPoolExecutor) -> Future[RawResponse]:
    """Ask until one request is let through to a fake that was skipped; it waits there."""
    asked: list[Future[RawResponse]] = []

    def is_tried() -> bool:
        if not asked or asked[-1].done():
            asked.append(pool.submit(ask, site))
        return fake.count("/api/chat") > 0

    site.process.wait_until(is_tried, f"{fake.name} is tried again")
    return asked[-1]


def test_a_trial_that_fails_skips_it_for_longer(tmp_path: Path) -> None:
    with fresh(tmp_path, CARAVAN_BREAKER_OPEN="0.2") as two:
        a, _ = two.fakes
        a.fault("/api/chat", faults.Error500("still sick"), times=None)
        for _ in range(FAILURES):
            assert answered_by(ask(two)) == "b"
        two.process.wait_until(lambda: ask(two).complete and a.count("/api/chat") > FAILURES, "it is tried again")
        two.process.wait_output("skipped for 0.4 s")
        assert {answered_by(ask(two)) for _ in range(5)} == {"b"}


# --- the retry budget ----------------------------------------------------------------------------


def done(asked: list[Future[RawResponse]]) -> int:
    return sum(each.done() for each in asked)


def all_at_once(site: Stand, count: int) -> list[RawResponse]:
    with ThreadPoolExecutor(count) as pool:
        return [each.result() for each in [pool.submit(ask, site) for _ in range(count)]]


class HeldBusy(faults.Fault):
    """Ollama's full queue, said once a test lets it be said."""

    def __init__(self) -> None:
        self.say = threading.Event()

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.wait(self.say)
        await faults.Refuse503Busy().play(exchange)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    # A busy machine would miss its polls, and what is marked down and comes back is forgiven. That a backend had no
    # room is remembered for twelve times as long as its breaker would be open.
    changes = {**NO_BREAKER, **SELDOM_POLLED, **STAYS_OPEN}
    with stand(tmp_path_factory.mktemp("budget"), "abc", **changes) as made:
        yield made


@pytest.fixture
def sick(three: Stand) -> Stand:
    """A fleet in which everybody's last answer was that there is no room."""
    three.tidy()
    for fake in three.fakes:
        fake.fault("/api/chat", faults.Refuse503Busy())
    assert ask(three).status == 503
    assert three.counts("/api/chat") == [1, 1, 1]
    for fake in three.fakes:
        fake.forget_requests()
    return three


def hold_busy(site: Stand) -> list[HeldBusy]:
    """Each fake says that it has no room, to all who have come, once it is let."""
    held = [HeldBusy() for _ in site.fakes]
    for fake, fault in zip(site.fakes, held, strict=True):
        fake.fault("/api/chat", fault, times=None)
    return held


def test_a_fleet_that_has_no_room_gets_a_fifth_more_attempts_at_once(sick: Stand) -> None:
    """At most LEAST, or 20 % of the requests under way: with 50 of them exactly 10."""
    a, b, c = sick.fakes
    held = hold_busy(sick)
    with ThreadPoolExecutor(50) as pool:
        asked = [pool.submit(ask, sick) for _ in range(50)]
        a.wait_for("/api/chat", 50)
        held[0].say.set()
        # All 50 were refused; ten are under way again, the others have their answer.
        sick.process.wait_until(lambda: done(asked) == 40, "40 have given up")
        b.wait_for("/api/chat", 10)
        assert (b.count("/api/chat"), c.count("/api/chat")) == (10, 0)
        for fault in held[1:]:
            fault.say.set()
        assert {each.result().status for each in asked} == {503}
    # Of those ten a fifth, or LEAST at once, may try the third one.
    assert c.count("/api/chat") <= 10


def test_a_sick_fleet_is_not_stormed(sick: Stand) -> None:
    """All attempts overlap, as under load: each backend says that it is busy when all are there who come to it."""
    held = hold_busy(sick)
    with ThreadPoolExecutor(60) as pool:
        asked = [pool.submit(ask, sick) for _ in range(60)]
        sick.fakes[0].wait_for("/api/chat", 60)
        for fault, over in zip(held, (60 - 12, 60 - LEAST, 60), strict=True):
            fault.say.set()
            sick.process.wait_until(lambda over=over: done(asked) == over, f"{over} have given up")
        assert {each.result().status for each in asked} == {503}
    # 60 first attempts, a fifth of them again; of those LEAST a third time.
    assert sick.counts("/api/chat") == [60, 12, LEAST]


@dataclass(frozen=True)
class After(faults.Fault):
    """Another fault, seconds later."""

    seconds: float
    fault: faults.Fault

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.wait(self.seconds)
        await self.fault.play(exchange)


def test_few_requests_get_their_three_attempts_in_a_sick_fleet_too(sick: Stand) -> None:
    for fake in sick.fakes[:2]:
        fake.fault("/api/chat", faults.Refuse503Busy())
    assert answered_by(ask(sick)) == "c"


def test_a_backend_that_has_room_again_is_found_by_everybody(sick: Stand) -> None:
    """One good answer, and a backend is no part of a storm any more."""
    assert answered_by(ask(sick)) == "a"
    for fake in sick.fakes:
        fake.forget_requests()
    assert {answered_by(answer) for answer in all_at_once(sick, 50)} == {"a"}


# --- one dead backend of two ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def blind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("blind"), models=MODELS, **SELDOM_POLLED, **NO_BREAKER) as made:
        yield made


@pytest.fixture
def half(blind: Stand) -> Iterator[Stand]:
    """Two backends of which the preferred one will die, unseen by any poll."""
    for fake in blind.fakes:
        fake.clear_faults()
        fake.wait_idle()
    blind.process.wait_until(lambda: answered_by(ask(blind)) == "a", "a is trusted again")
    for fake in blind.fakes:
        fake.forget_requests()
    yield blind
    blind.fakes[0].restart()


DEATHS: dict[str, faults.Fault | None] = {
    "killed": None,
    "500": faults.Error500("dead"),
    "reset": faults.RstBeforeHeaders(),
    # All 50 are there when the first one fails.
    "500 later": After(0.3, faults.Error500("dead")),
    "reset later": After(0.3, faults.RstBeforeHeaders()),
}


@pytest.mark.parametrize("way", DEATHS)
def test_one_dead_backend_of_two_costs_no_client_anything(half: Stand, way: str) -> None:
    a, _ = half.fakes
    if (fault := DEATHS[way]) is None:
        a.kill()
    else:
        a.fault("/api/chat", fault, times=None)
    assert {answered_by(answer) for answer in all_at_once(half, 50)} == {"b"}


def test_what_one_worker_saw_the_others_learn(tmp_path: Path, redis_url: str) -> None:
    with fresh(tmp_path, redis_url=redis_url, WEB_CONCURRENCY="2", **PATIENT) as two:
        a, _ = two.fakes
        two.process.wait_each(lambda: ask(two, "only-b").status == 200, "b is known")
        a.fault("/api/chat", faults.RstBeforeHeaders(), times=None)
        one, other = two.process.workers
        with two.process.only(one):
            two.process.wait_until(lambda: skipped(two, a), "the one asks it no more")
        # Nobody stands still meanwhile but for the moment of the question: the one tells, the other hears.
        two.process.wait_until(lambda: breaker_of(two, other, a) == "open", "the other has heard of it")
        with two.process.only(other):
            assert skipped(two, a)


def breaker_of(site: Stand, worker: psutil.Process, fake: FakeOllama) -> str:
    """A backend's breaker, as one worker tells of it."""
    with site.process.only(worker):
        backends = fetch(f"{site.url}/admin/api/backends").json()["backends"]
    found: str = next(backend["breaker"] for backend in backends if backend["name"] == fake.name)
    return found


def skipped(site: Stand, fake: FakeOllama) -> bool:
    before = fake.count("/api/chat")
    assert {answered_by(ask(site)) for _ in range(12)} == {"b"}
    return fake.count("/api/chat") == before


def test_the_log_tells_who_was_asked_in_which_order(three: Stand) -> None:
    three.tidy()
    three.fakes[0].fault("/api/chat", faults.Refuse503Busy())
    three.fakes[1].fault("/api/chat", faults.EofBeforeHeaders(), times=2)
    three.post("/api/chat", headers={"X-Request-Id": "in-order"})
    assert three.logged("in-order")["attempts"] == ["a", "b", "c"]
