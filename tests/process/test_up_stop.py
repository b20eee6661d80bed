"""How `caravan up` and gunicorn end: in order when asked, without a trace however it came."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from conformance.fakes.faults import Stall, StallBeforeHeaders, StreamThen
from conformance.fakes.http import CutOff, RawClient, RawResponse, encode_json
from conformance.fakes.ollama import FakeOllama
from tests.fakes.procs import Process, idle_connections, socket_files
from tests.process.checkout import fleet_of, server, up

MODEL = "llama3.2:1b"
# The bars of the project are 3 and 5 seconds; the rest is for a busy machine.
STOP_S = 15.0
KILLED_S = 15.0
TROUBLE = ("Traceback", '"level": "error"', "Exception in")

# Kept connections of Caravan to the fake may outlive a test by a moment.
pytestmark = pytest.mark.leaky

Starter = Callable[[dict[str, str], Path], Process]


@pytest.fixture
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama("one", [MODEL]) as fake:
        yield fake


def stream_request(fake_tokens: int) -> dict[str, object]:
    message = {"role": "user", "content": "hi"}
    return {"model": MODEL, "messages": [message], "options": {"fake_tokens": fake_tokens}}


@contextmanager
def running_stream(process: Process, tokens: int = 60) -> Iterator[tuple[RawClient, RawResponse]]:
    """A chat whose answer has begun; its body is still to be read."""
    with RawClient(process.url) as client:
        body = stream_request(tokens)
        client.send_request("POST", "/api/chat", encode_json(body))
        head = client.read_head()
        assert head.status == 200
        yield client, head


def read_rest(client: RawClient, head: RawResponse) -> RawResponse:
    try:
        for piece in client.iter_body(head):
            head.body += piece
        head.ended = "complete"
    except CutOff:
        head.ended = "cut"
    return head


def assert_nothing_left(process: Process, folder: Path, deadline_s: float) -> None:
    process.assert_all_gone(deadline_s)
    assert socket_files(folder) == []


def assert_quiet(process: Process) -> None:
    assert not [word for word in TROUBLE if word in process.output], process.output[-3000:]


def test_sigterm_ends_everything_within_three_seconds_despite_idle_connections(
    tmp_path: Path, ollama: FakeOllama
) -> None:
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        with idle_connections(caravan.port or 0, 20):
            at = time.monotonic()
            caravan.terminate()
            assert caravan.wait(STOP_S) == 0
            assert_nothing_left(caravan, tmp_path, STOP_S - (time.monotonic() - at))
        assert_quiet(caravan)


def test_ctrl_c_in_a_terminal_ends_everything_without_a_traceback(tmp_path: Path, ollama: FakeOllama) -> None:
    """There the whole foreground group gets the signal, the children too."""
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        caravan.descendants()
        at = time.monotonic()
        os.killpg(caravan.pid, signal.SIGINT)
        assert caravan.wait(STOP_S) == 0
        assert_nothing_left(caravan, tmp_path, STOP_S - (time.monotonic() - at))
        assert_quiet(caravan)
        assert "starting it again" not in caravan.output


def test_sigterm_while_a_backend_hangs_takes_no_longer(tmp_path: Path, ollama: FakeOllama) -> None:
    """The poll in flight ends at once, and so does a show document that is being fetched ahead."""
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        ollama.pause()
        ollama.forget_requests()
        ollama.wait_for("/api/tags")
        caravan.stop(STOP_S)
        assert_nothing_left(caravan, tmp_path, STOP_S)
        assert_quiet(caravan)


@pytest.mark.parametrize("sign", ["redis-server", "proxy_app.cli refresh", "gunicorn wsgi:app"])
def test_sigterm_in_the_middle_of_the_start_ends_everything(tmp_path: Path, ollama: FakeOllama, sign: str) -> None:
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_until(lambda: bool(caravan.named(sign)), f"{sign} is there")
        caravan.stop(STOP_S)
        assert_nothing_left(caravan, tmp_path, STOP_S)
        assert "Traceback" not in caravan.output


@pytest.mark.parametrize("start", [up, server], ids=["up", "gunicorn"])
def test_sigterm_lets_a_running_stream_finish(tmp_path: Path, ollama: FakeOllama, start: Starter) -> None:
    ollama.token_delay_s = 0.05
    with start(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        with running_stream(caravan, tokens=50) as (client, head):
            caravan.terminate()
            answer = read_rest(client, head)
        assert answer.complete
        assert [line["done"] for line in answer.lines()] == [False] * 50 + [True]
        at = time.monotonic()
        assert caravan.wait(STOP_S) == 0
        assert_nothing_left(caravan, tmp_path, STOP_S - (time.monotonic() - at))
        assert_quiet(caravan)


def test_a_stream_that_has_not_begun_is_finished_too(tmp_path: Path, ollama: FakeOllama) -> None:
    go = threading.Event()
    ollama.fault("/api/chat", StallBeforeHeaders(go))
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        with RawClient(caravan.url) as client:
            client.send_request(
                "POST", "/api/chat", encode_json(stream_request(3)), {"Content-Type": "application/json"}
            )
            ollama.wait_for("/api/chat")
            caravan.terminate()
            caravan.wait_until(lambda: not caravan._answers("/readyz"), "not ready", STOP_S)
            go.set()
            answer = client.read_response()
        assert (answer.status, answer.complete) == (200, True)
        assert caravan.wait(STOP_S) == 0


def test_a_draining_server_takes_no_new_work(tmp_path: Path, ollama: FakeOllama) -> None:
    """A load balancer that asks /readyz sees a refusal or a 503, never a 200."""
    ollama.token_delay_s = 0.05
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        with running_stream(caravan, tokens=400) as (client, head):
            caravan.terminate()
            caravan.wait_until(lambda: not caravan._answers("/readyz"), "not ready", STOP_S)
            caravan.wait_until(lambda: not caravan._answers("/readyz"), "not ready", STOP_S)
            assert caravan.alive
            assert next(client.iter_body(head))


def test_a_stream_that_outlasts_the_grace_time_ends_as_broken(tmp_path: Path, ollama: FakeOllama) -> None:
    ollama.fault("/api/chat", StreamThen(2, Stall()))
    with up({**fleet_of([ollama]), "CARAVAN_GRACE": "1"}, tmp_path) as caravan:
        caravan.wait_ready()
        with running_stream(caravan) as (client, head):
            caravan.terminate()
            answer = read_rest(client, head)
        assert not answer.complete or "error" in answer.lines()[-1]
        caravan.wait(1 + STOP_S)
        assert_nothing_left(caravan, tmp_path, STOP_S)


def test_after_kill_9_nothing_survives_five_seconds(tmp_path: Path, ollama: FakeOllama) -> None:
    """Not even with a stream under way and clients that hold on."""
    ollama.token_delay_s = 0.1
    with up(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        with idle_connections(caravan.port or 0, 5), running_stream(caravan, tokens=1000):
            caravan.kill9()
            assert_nothing_left(caravan, tmp_path, KILLED_S)


def test_after_kill_9_the_same_folder_can_be_served_again(tmp_path: Path, ollama: FakeOllama) -> None:
    with up(fleet_of([ollama]), tmp_path) as first:
        first.wait_ready()
        first.kill9()
        first.assert_all_gone(KILLED_S)
    # A Redis that a busy machine holds up for a moment is none that is away.
    with up({**fleet_of([ollama]), "CARAVAN_REDIS_TIMEOUT": "5"}, tmp_path) as second:
        second.wait_ready()
        assert "going on without" not in second.output


def test_after_kill_9_of_gunicorn_its_refresher_is_gone_too(tmp_path: Path, ollama: FakeOllama) -> None:
    with server(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        assert caravan.named("proxy_app.cli refresh")
        caravan.kill9()
        assert_nothing_left(caravan, tmp_path, KILLED_S)


def test_gunicorn_alone_ends_within_three_seconds_too(tmp_path: Path, ollama: FakeOllama) -> None:
    with server(fleet_of([ollama]), tmp_path) as caravan:
        caravan.wait_ready()
        with idle_connections(caravan.port or 0, 20):
            caravan.stop(STOP_S)
            caravan.assert_all_gone(STOP_S)
        assert_quiet(caravan)
