"""Time limits that know models: what is waited for, how long, and what is said of it when it was too long."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from conformance.fakes import faults
from conformance.fakes.http import RawResponse
from conformance.fakes.ollama import FakeOllama
from tests.product import NO_BREAKER, STREAMING, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

# In seconds; the setting's smallest values, and a load that may take one more.
FIRST_BYTE_S, LOAD_S, IDLE_S = 1, 1, 0.5
TIMES = {
    "CARAVAN_FIRST_BYTE_TIMEOUT": str(FIRST_BYTE_S),
    "CARAVAN_LOAD_TIMEOUT": str(LOAD_S),
    "CARAVAN_IDLE_TIMEOUT": str(IDLE_S),
}
MODELS = ("warm", "cold")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("timeouts"), models=MODELS, **TIMES, **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    """`warm` is loaded on the first, which is the one that is asked, `cold` on none, and Caravan knows it."""
    shared.tidy()
    for fake in shared.fakes:
        fake.unload_model("warm")
        fake.unload_model("cold")
    # `/api/ps` does not say where: loaded on both, it may be seen on the second alone.
    shared.fakes[0].load_model("warm")
    shared.process.wait_until(lambda: loaded(shared) == {"warm:latest"}, "warm alone is loaded")
    return shared


def loaded(site: Stand) -> set[str]:
    return {model["name"] for model in site.process.get("/api/ps").json()["models"]}


def timed(site: Stand, path: str, asked: dict[str, Any], request_id: str) -> tuple[RawResponse, float]:
    began_s = time.monotonic()
    return site.post(path, asked, headers={"X-Request-Id": request_id}), time.monotonic() - began_s


def logged(site: Stand, request_id: str) -> dict[str, Any]:
    """The log line of a request, as soon as it is there."""
    site.process.wait_output(f'"request_id": "{request_id}"')
    lines = (line for line in site.process.output.splitlines() if f'"{request_id}"' in line and '"outcome"' in line)
    found: dict[str, Any] = json.loads(next(lines))
    return found


def test_a_warm_model_and_a_cold_one_are_waited_for_differently(site: Stand) -> None:
    for fake in site.fakes:
        fake.fault("/api/chat", faults.StallBeforeHeaders(), times=None)
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(timed, site, "/api/chat", question("/api/chat", model), f"first-{model}") for model in MODELS
        ]
        (warm, warm_s), (cold, cold_s) = (each.result() for each in asked)
    assert (warm.status, cold.status) == (504, 504)
    assert FIRST_BYTE_S <= warm_s < FIRST_BYTE_S + LOAD_S <= cold_s
    # What was waited for is told.
    assert "1 s" in warm.json()["error"]
    assert "load" not in warm.json()["error"]
    assert "2 s" in cold.json()["error"]
    assert "1 s were for loading" in cold.json()["error"]
    # The one that may be nearly done is not begun anew elsewhere.
    assert site.counts("/api/chat") == [2, 0]
    for model in MODELS:
        line = logged(site, f"first-{model}")
        assert (line["status"], line["outcome"], line["attempts"]) == (504, "upstream_timeout", ["a"])
        assert f"first-{model}: a: no answer within {1 if model == 'warm' else 2} s" in site.process.output
    for request in site.fakes[0].requests_for("/api/chat"):
        assert request.client_gone.wait(5)


def test_a_load_longer_than_the_limit_for_a_prompt_is_waited_for(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.SlowLoad(1.4), times=None)
    answer, _ = timed(site, "/api/chat", question("/api/chat", "cold"), "slow-load")
    assert answer.lines()[-1]["done"]
    assert logged(site, "slow-load")["first_byte_s"] >= 1.4
    # It took 1.4 s: the next one may take twice that, and its prompt a second more.
    site.fakes[0].unload_model("cold")
    site.process.wait_until(lambda: loaded(site) == {"warm:latest"}, "cold is unloaded again")
    site.fakes[0].clear_faults()
    site.fakes[0].fault("/api/chat", faults.SlowLoad(2.6))
    answer, took_s = timed(site, "/api/chat", question("/api/chat", "cold"), "slower-load")
    assert answer.lines()[-1]["done"]
    assert took_s >= 2.6
    assert site.counts("/api/chat") == [2, 0]


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
        assert f"within {FIRST_BYTE_S} s".encode() in answer.body
        assert answer.header("x-request-id")


def test_a_stream_that_falls_silent_says_for_how_long(site: Stand) -> None:
    for path in STREAMING:
        site.fakes[0].fault(path, faults.StreamThen(2, faults.Stall))
    with ThreadPoolExecutor(len(STREAMING)) as pool:
        asked = [
            pool.submit(timed, site, path, question(path, "warm", stream=True), f"idle{path}".replace("/", "-"))
            for path in STREAMING
        ]
        answers = [each.result() for each in asked]
    for path, (answer, took_s) in zip(STREAMING, answers, strict=True):
        assert answer.complete
        assert took_s >= IDLE_S
        assert f"for {IDLE_S} s".encode() in answer.body.rstrip().splitlines()[-1]
        assert logged(site, f"idle{path}".replace("/", "-"))["outcome"] == "silent"
        assert site.fakes[0].wait_for(path).client_gone.wait(5)


def test_a_head_without_a_body_fails_over_after_the_idle_time(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.StreamThen(0, faults.Stall))
    answer, took_s = timed(site, "/api/chat", question("/api/chat", "warm"), "head-only")
    assert answer.lines()[-1]["done"]
    assert took_s >= IDLE_S
    assert site.counts("/api/chat") == [1, 1]


def test_tokens_that_come_slower_than_in_time_for_the_whole_are_no_silence(site: Stand) -> None:
    """The limit is for each pause, not for the answer."""
    site.fakes[0].tokens, site.fakes[0].token_delay_s = 6, 0.2
    answer, took_s = timed(site, "/api/chat", question("/api/chat", "warm"), "slow-tokens")
    assert answer.lines()[-1]["done"]
    assert took_s > IDLE_S


def test_a_whole_answer_may_take_as_long_as_a_first_byte(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.SlowLoad(0.8))
    assert site.post("/api/chat", question("/api/chat", "warm", stream=False)).json()["done"]


def test_a_connection_that_hangs_moves_on_after_the_connect_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    # Polled so seldom that only the request itself can find out.
    seldom = {"CARAVAN_POLL_INTERVAL": "60", "CARAVAN_CONNECT_TIMEOUT": "0.5"}
    with stand(tmp_path_factory.mktemp("hole"), **seldom) as two:
        a, b = two.fakes
        a.black_hole()
        try:
            began_s = time.monotonic()
            # The first may find a connection of old, which falls silent; this worker has none yet.
            assert two.post("/api/chat").lines()[-1]["done"]
            assert 0.5 <= time.monotonic() - began_s < 5
            assert two.post("/api/chat").lines()[-1]["done"]
            assert b.count("/api/chat") == 2
        finally:
            a.restart()


def test_a_timeout_of_a_backend_that_comes_back_leaves_the_others_requests_alone(site: Stand) -> None:
    """Those who wait at the same backend have their own time."""
    answer = threading.Event()
    a: FakeOllama = site.fakes[0]
    a.fault("/api/chat", faults.StallBeforeHeaders(), times=1)
    a.fault("/api/chat", faults.StallBeforeHeaders(answer), times=1)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(timed, site, "/api/chat", question("/api/chat", "warm"), "lost")
        a.wait_for("/api/chat", 1)
        assert a.requests_for("/api/chat")[0].client_gone.wait(FIRST_BYTE_S - 0.3) is False
        second = pool.submit(timed, site, "/api/chat", question("/api/chat", "warm"), "kept")
        a.wait_for("/api/chat", 2)
        assert first.result()[0].status == 504
        answer.set()
        assert second.result()[0].lines()[-1]["done"]
