"""Backends that come, go, fail and recover in any order while requests run: no 5xx while a healthy holder exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from conformance.fakes import faults
from conformance.fakes.http import RawResponse
from conformance.fakes.ollama import FakeOllama
from tests.product import STREAMING, Stand, listed, mark, question, stand

# The product and its backends live as long as the module.
pytestmark = pytest.mark.leaky

NAMES = "abc"
PATHS = (*STREAMING, "/api/embed", "/v1/embeddings")
# How a backend may fail while it is reachable; two that said the same would be believed.
FAULTS = {
    "500": lambda name: faults.Error500(f"{name} is sick"),
    "busy": lambda name: faults.Refuse503Busy(),
    "eof": lambda name: faults.EofBeforeHeaders(),
    "rst": lambda name: faults.RstBeforeHeaders(),
    "garbage": lambda name: faults.GarbageAfter200(),
    "401": lambda name: faults.Status(401, f'{{"error":"{name}"}}'),
}
# Breakers, budgets and attempts are as shipped.
LIMITS = {
    # Three polls in vain mark a backend down: one that a busy machine holds up for a moment has to answer one of them.
    "CARAVAN_CONNECT_TIMEOUT": "1",
    "CARAVAN_POLL_TIMEOUT": "1",
    # Below what the clients of this test wait for.
    "CARAVAN_FIRST_BYTE_TIMEOUT": "5",
    "CARAVAN_IDLE_TIMEOUT": "5",
}
DEADLINE_S = 20.0
# As many requests as may always try again at once.
AT_ONCE = 3
END_MARKS = (b'"done":true', b"[DONE]", b"message_stop", b"response.completed")
backends = st.integers(0, len(NAMES) - 1)


@dataclass
class Running:
    """A stream under way: it ends well unless something happens to the backend that speaks."""

    answer: Future[RawResponse]
    unsettled: set[str]


class Fleet(RuleBasedStateMachine):
    """What the backends are, as who plays with them knows it; `site` is set by the test.

    State: of each backend "ok", "killed", "paused", "gone" (a black hole) or the name of its fault, and whether
    Caravan has to find out first that it is back.
    """

    site: Stand

    def __init__(self) -> None:
        super().__init__()
        self.states = dict.fromkeys(NAMES, "ok")
        self.returning: set[str] = set()
        self.streams: list[Running] = []
        self.pool = ThreadPoolExecutor(8)

    @initialize()
    def begin(self) -> None:
        self.site.tidy()

    def fake(self, place: int) -> FakeOllama:
        return self.site.fakes[place]

    # --- what happens to backends --------------------------------------------------------------

    def becomes(self, place: int, state: str) -> None:
        name = NAMES[place]
        self.states[name] = state
        self.returning.discard(name)
        for stream in self.streams:
            stream.unsettled.add(name)

    def is_ok(self, place: int) -> bool:
        return self.states[NAMES[place]] == "ok"

    @rule(place=backends, reset=st.booleans())
    def kill(self, place: int, reset: bool) -> None:
        if self.is_ok(place):
            self.becomes(place, "killed")
            self.fake(place).kill(reset)

    @rule(place=backends, name=st.sampled_from(sorted(FAULTS)))
    def fail(self, place: int, name: str) -> None:
        if self.is_ok(place) and NAMES[place] not in self.returning:
            # What streams already goes on.
            self.states[NAMES[place]] = name
            for path in PATHS:
                self.fake(place).fault(path, FAULTS[name](NAMES[place]), times=None)

    @precondition(lambda self: not {"paused", "gone"} & set(self.states.values()))
    @rule(place=backends, how=st.sampled_from(["paused", "gone"]))
    def fall_silent(self, place: int, how: str) -> None:
        """A request that is sent into the silence waits for its time limit: the promise begins when it is known."""
        if self.is_ok(place):
            self.becomes(place, how)
            self.fake(place).pause() if how == "paused" else self.fake(place).black_hole()
            self.site.wait_unseen(self.fake(place), DEADLINE_S)

    @rule(place=backends)
    def recover(self, place: int) -> None:
        fake, name = self.fake(place), NAMES[place]
        state = self.states[name]
        self.states[name] = "ok"
        if state in FAULTS:
            fake.clear_faults()
        elif state == "paused":
            fake.resume()
        elif state != "ok":
            fake.restart()
        if state in ("killed", "paused", "gone"):
            self.returning.add(name)

    # --- requests ------------------------------------------------------------------------------

    @rule(path=st.sampled_from(PATHS), stream=st.booleans())
    def ask(self, path: str, stream: bool) -> None:
        self.check([self.site.post(path, asked(path, "tiny", stream))], self.healthy())

    @rule(path=st.sampled_from(PATHS), stream=st.booleans())
    def ask_several_at_once(self, path: str, stream: bool) -> None:
        healthy = self.healthy()
        pending = [self.pool.submit(self.site.post, path, asked(path, "tiny", stream)) for _ in range(AT_ONCE)]
        self.check([each.result() for each in pending], healthy)

    @rule(place=backends, path=st.sampled_from(PATHS))
    def ask_for_a_model_of_one(self, place: int, path: str) -> None:
        name = NAMES[place]
        if self.states[name] == "ok" and name in self.returning:
            self.settle({name})
        healthy = {name} if self.states[name] == "ok" else set()
        self.check([self.site.post(path, asked(path, f"only-{name}", stream=True))], healthy)

    @precondition(lambda self: len(self.streams) < 3)
    @rule()
    def begin_a_stream(self) -> None:
        if self.healthy():
            slow = question("/api/chat", options={"fake_tokens": 40, "fake_delay_s": 0.01})
            before = sum(self.site.counts("/api/chat"))
            self.streams.append(Running(self.pool.submit(self.site.post, "/api/chat", slow), set()))
            self.site.process.wait_until(lambda: sum(self.site.counts("/api/chat")) > before, "it was sent")

    # --- what has to be true -------------------------------------------------------------------

    def healthy(self) -> set[str]:
        """Who holds the model, is reachable, does not fail, and is known to be back."""
        ready = {name for name, state in self.states.items() if state == "ok"}
        if ready and ready <= self.returning:
            self.settle(ready)
        return ready - self.returning

    def settle(self, names: set[str]) -> None:
        """Wait until Caravan knows that these are back."""
        wanted = {mark(fake) for fake in self.site.fakes if fake.name in names}
        self.site.process.wait_each(lambda: wanted <= listed(self.site.url), f"{sorted(names)} are back", DEADLINE_S)
        self.returning -= names

    def check(self, answers: Sequence[RawResponse], healthy: set[str]) -> None:
        for answer in answers:
            assert answer.ended == "complete"
            if healthy:
                assert answer.status < 500, (answer.status, answer.body, self.states, self.returning)
                assert is_whole(answer), (answer.body[-300:], self.states)
            elif answer.status >= 400:
                assert b"error" in answer.body

    def teardown(self) -> None:
        try:
            for stream in self.streams:
                self.check_stream(stream)
        finally:
            self.pool.shutdown()
            for place in range(len(NAMES)):
                self.recover(place)
                self.fake(place).clear_faults()

    def check_stream(self, stream: Running) -> None:
        answer = stream.answer.result()
        assert answer.ended == "complete"
        speaker = next((name for name in NAMES if f'"{name}"'.encode() in answer.body.replace(b'" ', b'"')), "")
        if not is_whole(answer):
            assert b"error" in answer.body.splitlines()[-1]
            assert speaker in stream.unsettled or not speaker, (speaker, stream.unsettled, answer.body[-200:])


def asked(path: str, model: str, stream: bool) -> object:
    return question(path, model, stream if path in STREAMING else None)


def is_whole(answer: RawResponse) -> bool:
    if (answer.content_type or "").startswith("application/json"):
        return "error" not in answer.json() or answer.json()["error"] is None
    return any(mark in answer.body.splitlines()[-1] + answer.body[-200:] for mark in END_MARKS)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("machine"), NAMES, **LIMITS) as made:
        yield made


@pytest.mark.timeout(300)
def test_no_request_fails_while_a_healthy_holder_exists(site: Stand) -> None:
    bounded = settings(
        max_examples=12,
        stateful_step_count=15,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(type("TheFleet", (Fleet,), {"site": site}), settings=bounded)
