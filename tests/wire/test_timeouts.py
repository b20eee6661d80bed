"""Time limits that know models: what is waited for, how long, and what is said of it when it was too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes import faults
from conformance.fakes.http import RawResponse
from conformance.fakes.ollama import FakeOllama
from tests.product import NO_BREAKER, SELDOM_POLLED, STREAMING, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

MODELS = ("warm", "cold")


@dataclass(frozen=True)
class Times:
    """The limits of a product, in seconds."""

    first_byte: float
    load: float
    idle: float

    @property
    def settings(self) -> dict[str, str]:
        names = {"FIRST_BYTE": self.first_byte, "LOAD": self.load, "IDLE": self.idle}
        return {f"CARAVAN_{name}_TIMEOUT": str(value) for name, value in names.items()}


# Where the limit itself is waited for: the smallest that can be set. Only the load's has room for a busy machine, which
# is to be told from one that was waited for as for a load.
SHORT = Times(first_byte=1, load=3, idle=0.5)
# Where something has to come before a limit: a busy machine may be as late as the rest of it.
ROOMY = Times(first_byte=4, load=2.5, idle=1.5)
# From a limit until the backend is let go; only a failure takes as long.
GONE_S = 15.0


@contextmanager
def limited(folder: Path, times: Times) -> Iterator[Stand]:
    with stand(folder, models=MODELS, **times.settings, **NO_BREAKER) as made:
        yield made


@pytest.fixture(scope="module")
def shared_short(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with limited(tmp_path_factory.mktemp("short"), SHORT) as made:
        yield made


@pytest.fixture(scope="module")
def shared_roomy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with limited(tmp_path_factory.mktemp("roomy"), ROOMY) as made:
        yield made


@pytest.fixture
def site(shared_short: Stand) -> Stand:
    return warmed(shared_short)


@pytest.fixture
def roomy(shared_roomy: Stand) -> Stand:
    return warmed(shared_roomy)


def warmed(made: Stand) -> Stand:
    """`warm` is loaded on the first, which is the one that is asked, `cold` on none, and Caravan knows it."""
    made.tidy()
    for fake in made.fakes:
        fake.unload_model("warm")
        fake.unload_model("cold")
    # `/api/ps` does not say where: what was loaded on the second must be forgotten first.
    made.process.wait_until(lambda: loaded(made) == set(), "nothing is loaded")
    made.fakes[0].load_model("warm")
    made.process.wait_until(lambda: loaded(made) == {"warm:latest"}, "warm alone is loaded")
    return made


def loaded(site: Stand) -> set[str]:
    return {model["name"] for model in site.process.get("/api/ps").json()["models"]}


def timed(site: Stand, path: str, asked: dict[str, Any], request_id: str) -> tuple[RawResponse, float]:
    began_s = time.monotonic()
    return site.post(path, asked, headers={"X-Request-Id": request_id}), time.monotonic() - began_s


def test_a_warm_model_and_a_cold_one_are_waited_for_differently(site: Stand) -> None:
    for fake in site.fakes:
        fake.fault("/api/chat", faults.StallBeforeHeaders(), times=None)
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(timed, site, "/api/chat", question("/api/chat", model), f"first-{model}") for model in MODELS
        ]
        (warm, warm_s), (cold, cold_s) = (each.result() for each in asked)
    assert (warm.status, cold.status) == (504, 504)
    assert SHORT.first_byte <= warm_s < SHORT.first_byte + SHORT.load <= cold_s
    # What was waited for is told.
    assert "1 s" in warm.json()["error"]
    assert "load" not in warm.json()["error"]
    assert "4 s" in cold.json()["error"]
    assert "3 s were for loading" in cold.json()["error"]
    # The one that may be nearly done is not begun anew elsewhere.
    assert site.counts("/api/chat") == [2, 0]
    for model in MODELS:
        line = site.logged(f"first-{model}")
        assert (line["status"], line["outcome"], line["attempts"]) == (504, "upstream_timeout", ["a"])
        assert f"first-{model}: a: no answer within {1 if model == 'warm' else 4} s" in site.process.output
    for request in site.fakes[0].requests_for("/api/chat"):
        assert request.client_gone.wait(GONE_S)


def test_a_load_longer_than_the_limit_for_a_prompt_is_waited_for(roomy: Stand) -> None:
    a = roomy.fakes[0]
    slow_s, slower_s = ROOMY.first_byte + 1, ROOMY.first_byte + ROOMY.load + 0.5
    a.fault("/api/chat", faults.SlowLoad(slow_s), times=None)
    answer, _ = timed(roomy, "/api/chat", question("/api/chat", "cold"), "slow-load")
    assert answer.lines()[-1]["done"]
    assert roomy.logged("slow-load")["first_byte_s"] >= slow_s
    # The next one may take twice as long, and its prompt its own time more.
    roomy.process.wait_until(lambda: "cold:latest" in loaded(roomy), "cold is loaded")
    a.unload_model("cold")
    roomy.process.wait_until(lambda: loaded(roomy) == {"warm:latest"}, "cold is unloaded again")
    a.clear_faults()
    a.fault("/api/chat", faults.SlowLoad(slower_s))
    answer, took_s = timed(roomy, "/api/chat", question("/api/chat", "cold"), "slower-load")
    assert answer.lines()[-1]["done"]
    assert took_s >= slower_s
    assert roomy.counts("/api/chat") == [2, 0]


DIALECT_ERRORS = {"/v1/messages": {"type", "error", "request_id"}}


def test_a_timeout_is_told_in_every_dialect(site: Stand) -> None:
    paths = ("/api/generate", "/api/embed", "/v1/chat/completions", "/v1/responses", "/v1/messages")
    for fake in site.fakes:
        fake.fault("*", faults.StallBeforeHeaders(), times=None, when=lambda request: request.target in paths)
    with ThreadPoolExecutor(len(paths)) as pool:
        answers = list(pool.map(lambda path: site.post(path, question(path, "warm")), paths))
    for path, answer in zip(paths, answers, strict=True):
        assert answer.status == 504
        assert set(answer.json()) == DIALECT_ERRORS.get(path, {"error"})
        assert f"within {SHORT.first_byte} s".encode() in answer.body
        assert answer.header("x-request-id")


def test_a_stream_that_falls_silent_says_for_how_long(roomy: Stand) -> None:
    for path in STREAMING:
        roomy.fakes[0].fault(path, faults.StreamThen(2, faults.Stall))
    with ThreadPoolExecutor(len(STREAMING)) as pool:
        asked = [
            pool.submit(timed, roomy, path, question(path, "warm", stream=True), f"idle{path}".replace("/", "-"))
            for path in STREAMING
        ]
        answers = [each.result() for each in asked]
    for path, (answer, took_s) in zip(STREAMING, answers, strict=True):
        assert answer.complete
        assert took_s >= ROOMY.idle
        assert f"for {ROOMY.idle} s".encode() in answer.body.rstrip().splitlines()[-1]
        assert roomy.logged(f"idle{path}".replace("/", "-"))["outcome"] == "silent"
        assert roomy.fakes[0].wait_for(path).client_gone.wait(GONE_S)


def test_a_head_without_a_body_fails_over_after_the_idle_time(roomy: Stand) -> None:
    roomy.fakes[0].fault("/api/chat", faults.StreamThen(0, faults.Stall))
    answer, took_s = timed(roomy, "/api/chat", question("/api/chat", "warm"), "head-only")
    assert answer.lines()[-1]["done"]
    assert took_s >= ROOMY.idle
    assert roomy.counts("/api/chat") == [1, 1]


def test_tokens_that_come_slower_than_in_time_for_the_whole_are_no_silence(roomy: Stand) -> None:
    """The limit is for each pause, not for the answer."""
    roomy.fakes[0].tokens, roomy.fakes[0].token_delay_s = 20, ROOMY.idle / 10
    answer, took_s = timed(roomy, "/api/chat", question("/api/chat", "warm"), "slow-tokens")
    assert answer.lines()[-1]["done"]
    assert took_s > ROOMY.idle


def test_a_whole_answer_may_take_as_long_as_a_first_byte(roomy: Stand) -> None:
    roomy.fakes[0].fault("/api/chat", faults.SlowLoad(ROOMY.idle + 0.5))
    assert roomy.post("/api/chat", question("/api/chat", "warm", stream=False)).json()["done"]


def test_a_connection_that_hangs_moves_on_after_the_connect_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Polled so seldom that only the request itself can find out.
    seldom = {**SELDOM_POLLED, "CARAVAN_CONNECT_TIMEOUT": "1"}
    with stand(tmp_path_factory.mktemp("hole"), **seldom) as two:
        a, b = two.fakes
        a.black_hole()
        try:
            began_s = time.monotonic()
            # The first may find a connection of old, which falls silent; this worker has none yet.
            assert two.post("/api/chat").lines()[-1]["done"]
            assert 1 <= time.monotonic() - began_s < 8
            assert two.post("/api/chat").lines()[-1]["done"]
            assert b.count("/api/chat") == 2
        finally:
            a.restart()


def test_a_timeout_of_a_backend_that_comes_back_leaves_the_others_requests_alone(roomy: Stand) -> None:
    """Those who wait at the same backend have their own time."""
    answer = threading.Event()
    a: FakeOllama = roomy.fakes[0]
    a.fault("/api/chat", faults.StallBeforeHeaders(), times=1)
    a.fault("/api/chat", faults.StallBeforeHeaders(answer), times=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(timed, roomy, "/api/chat", question("/api/chat", "warm"), "lost")
        a.wait_for("/api/chat", 1)
        assert a.requests_for("/api/chat")[0].client_gone.wait(ROOMY.first_byte / 2) is False
        second = pool.submit(timed, roomy, "/api/chat", question("/api/chat", "warm"), "kept")
        a.wait_for("/api/chat", 2)
        assert first.result()[0].status == 504
        answer.set()
        assert second.result()[0].lines()[-1]["done"]
