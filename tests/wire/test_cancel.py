"""A client that leaves frees its backend within 200 ms at any stage; a load that others wait for may go on."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from conformance.fakes import faults
from conformance.fakes.http import RawClient
from conformance.fakes.recorded import RecordedRequest
from tests.product import NO_BREAKER, STREAMING, Stand, question, stand
from tests.wire.scripted import CHUNKED, JSON_UTF8, Packets, Silence, chunk, chunked

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

# The promise, in seconds, and where a test that has the machine for itself says that it is broken: the rest is for slow
# processors. FREED_S: the deadline of all others, which prove that a backend is freed: nothing else does it so soon.
PROMISED_S, LATE_S, FREED_S = 0.2, 2.0, 10.0
WAYS: dict[str, Callable[[RawClient], None]] = {"fin": RawClient.close, "rst": RawClient.abort}
MIB = 1 << 20


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("cancel"), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


def send(client: RawClient, path: str = "/api/chat", headers: dict[str, str] | None = None, **asked: Any) -> None:
    client.send_request("POST", path, json.dumps(question(path, **asked)).encode(), headers)


def leave(client: RawClient, way: str, request: RecordedRequest) -> float:
    """Hang up; returns how long in seconds the backend went on working for nobody."""
    assert not request.client_gone.is_set()
    left_s = time.monotonic()
    WAYS[way](client)
    assert request.client_gone.wait(FREED_S), "the backend goes on working for nobody"
    assert request.gone_after_s is not None
    return request.at + request.gone_after_s - left_s


@pytest.mark.alone
def test_the_backend_is_free_within_200_ms_of_a_hang_up_during_prefill_100_times_of_100(site: Stand) -> None:
    took: list[float] = []
    for number in range(100):
        site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders())
        with site.client() as client:
            send(client, stream=number % 4 < 2)
            took.append(leave(client, ("fin", "rst")[number % 2], site.fakes[0].wait_for("/api/chat", number + 1)))
    print(f"hang-ups during prefill: worst {max(took) * 1000:.1f} ms, median {sorted(took)[50] * 1000:.1f} ms")
    assert max(took) < LATE_S
    # A client that left is nobody's fault: nobody else was asked.
    assert site.counts("/api/chat") == [100, 0]


# --- the stages of a request ---------------------------------------------------------------------


TOKEN = b'{"message":{"role":"assistant","content":"Hel"},"done":false}\n'
JSON_HEAD = ("Content-Type", JSON_UTF8)
# Stage: what the backend does, whether the client has got something of it by then, and whether it asks for a stream.
STAGES: dict[str, tuple[faults.Fault, bool, bool]] = {
    "prefill": (faults.StallBeforeHeaders(), False, True),
    "prefill of a whole answer": (faults.StallBeforeHeaders(), False, False),
    "a head without a body": (Silence(chunked("/api/chat", last=b"")), False, True),
    "half a first record": (Silence(chunked("/api/chat", TOKEN[:20], last=b"")), False, True),
    "a stream": (Silence(chunked("/api/chat", TOKEN, TOKEN, last=b"")), True, True),
    "half a whole answer": (Silence(Packets([JSON_HEAD, CHUNKED], [chunk(b'{"message":')])), False, False),
    "a long whole answer": (Silence(Packets([JSON_HEAD, CHUNKED], [chunk(b"[" + b"1," * MIB)])), True, False),
    "a long answer with a length": (
        Silence(Packets([JSON_HEAD, ("Content-Length", str(9 * MIB))], [b"[" + b"1," * MIB])),
        True,
        False,
    ),
}


@pytest.mark.alone
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_hang_up_frees_the_backend_at_every_stage(site: Stand, stage: str, version: str, way: str) -> None:
    fault, has_begun, stream = STAGES[stage]
    site.fakes[0].fault("/api/chat", fault)
    body = json.dumps(question("/api/chat", stream=stream)).encode()
    with site.client() as client:
        client.send(
            f"POST /api/chat {version}\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
        )
        request = site.fakes[0].wait_for("/api/chat")
        if has_begun:
            head = client.read_head()
            assert next(client.iter_body(head))
        assert leave(client, way, request) < LATE_S
    assert site.counts("/api/chat") == [1, 0]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", STREAMING)
def test_a_hang_up_while_tokens_flow_frees_the_backend(site: Stand, path: str, way: str) -> None:
    site.fakes[0].tokens, site.fakes[0].token_delay_s = 10_000, 0.02
    with site.client() as client:
        send(client, path, stream=True)
        head = client.read_head()
        assert next(client.iter_body(head))
        leave(client, way, site.fakes[0].wait_for(path))


def test_a_hang_up_of_one_that_reads_nothing_frees_the_backend(site: Stand) -> None:
    """The pump waits for the client's window then, not for the backend."""
    with site.client() as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        send(client, options={"fake_tokens": 400_000})
        request = site.fakes[0].wait_for("/api/chat")
        assert client.sock.recv(1, socket.MSG_PEEK)
        leave(client, "rst", request)


@pytest.mark.parametrize("way", WAYS)
def test_one_of_many_in_the_backends_queue_leaves_alone(site: Stand, way: str) -> None:
    """Those who wait in Ollama's own queue are requests under way here."""
    answer = threading.Event()
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(answer), times=None)
    clients = [site.client() for _ in range(6)]
    try:
        for number, client in enumerate(clients, 1):
            send(client, stream=False)
            site.fakes[0].wait_for("/api/chat", number)
        requests = site.fakes[0].requests_for("/api/chat")
        leave(clients[3], way, requests[3])
        assert [request.client_gone.is_set() for request in requests] == [False, False, False, True, False, False]
        answer.set()
        rest = [client.read_response() for number, client in enumerate(clients) if number != 3]
    finally:
        answer.set()
        for client in clients:
            client.close()
    assert [each.json()["done"] for each in rest] == [True] * 5


def test_a_hang_up_between_two_attempts_asks_nobody_else(site: Stand) -> None:
    """The first backend is busy, the second one thinks: it is the one to be freed."""
    site.fakes[0].fault("/api/chat", faults.Refuse503Busy())
    site.fakes[1].fault("/api/chat", faults.StallBeforeHeaders())
    with site.client() as client:
        send(client)
        leave(client, "fin", site.fakes[1].wait_for("/api/chat"))
    assert site.counts("/api/chat") == [1, 1]


@pytest.mark.alone
def test_a_hundred_that_leave_together_free_everything(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(), times=None)
    clients = [site.client() for _ in range(100)]
    for client in clients:
        send(client)
    site.fakes[0].wait_for("/api/chat", 100)
    left_s = time.monotonic()
    for client in clients:
        client.abort()
    site.fakes[0].wait_idle()
    # 200 ms for each of them, and the time it takes 100 clients to leave.
    assert time.monotonic() - left_s < LATE_S
    assert site.post("/api/generate").complete


def test_a_hang_up_is_a_499_in_the_log_and_counts_against_nobody(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(), times=120)
    for number in range(120):
        with site.client() as client:
            send(client, headers={"X-Request-Id": f"gone-{number}"})
            site.fakes[0].wait_for("/api/chat", number + 1)
    line = site.logged("gone-119")
    assert (line["status"], line["outcome"], line["attempts"]) == (499, "client_gone", ["a"])
    # More than it takes to open the breaker of this product.
    assert site.post("/api/chat").complete
    assert site.counts("/api/chat") == [121, 0]


# --- a load that others wait for -----------------------------------------------------------------


@pytest.fixture(scope="module")
def finishing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    models = [f"cold{number}" for number in range(12)]
    with stand(tmp_path_factory.mktemp("loads"), models=models, CARAVAN_FINISH_LOADS="1", **NO_BREAKER) as made:
        yield made


@pytest.fixture
def cold(finishing: Stand) -> Iterator[Stand]:
    finishing.tidy()
    yield finishing
    for fake in finishing.fakes:
        fake.clear_faults()
        fake.wait_idle()


@pytest.fixture
def model(request: pytest.FixtureRequest) -> str:
    """A model that no test of the module has loaded yet."""
    names: Iterator[str] = request.getfixturevalue("names")
    return next(names)


@pytest.fixture(scope="module")
def names() -> Iterator[str]:
    return iter(f"cold{number}" for number in range(12))


@dataclass
class Loading:
    """Two clients that wait for the same load, each request stalled until its event is set."""

    clients: tuple[RawClient, RawClient]
    requests: tuple[RecordedRequest, RecordedRequest]
    answers: tuple[threading.Event, threading.Event]

    def close(self) -> None:
        for event in self.answers:
            event.set()
        for client in self.clients:
            client.close()


def two_waiting(site: Stand, model: str, first_id: str = "first") -> Loading:
    answers = threading.Event(), threading.Event()
    clients = site.client(), site.client()
    for number, (client, answer) in enumerate(zip(clients, answers, strict=True), 1):
        site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(answer), times=1)
        send(client, headers={"X-Request-Id": f"{first_id}-{number}"}, model=model)
        site.fakes[0].wait_for("/api/chat", number)
    first, second = site.fakes[0].requests_for("/api/chat")
    return Loading(clients, (first, second), answers)


@pytest.mark.parametrize("way", WAYS)
def test_a_load_that_another_client_waits_for_goes_on(cold: Stand, model: str, way: str) -> None:
    loading = two_waiting(cold, model, f"on-{way}")
    try:
        WAYS[way](loading.clients[0])
        assert cold.logged(f"on-{way}-1")["outcome"] == "client_gone"
        # Its connection would be closed within this time.
        assert not loading.requests[0].client_gone.wait(PROMISED_S)
        loading.answers[1].set()
        assert loading.clients[1].read_response().lines()[-1]["done"]
        # The load is done: nobody reads what the first one asked for.
        assert loading.requests[0].client_gone.wait(FREED_S)
    finally:
        loading.close()


def test_a_load_ends_when_the_last_one_who_waits_leaves(cold: Stand, model: str) -> None:
    loading = two_waiting(cold, model, "last")
    try:
        loading.clients[0].close()
        assert cold.logged("last-1")["outcome"] == "client_gone"
        leave(loading.clients[1], "fin", loading.requests[1])
        assert loading.requests[0].client_gone.wait(FREED_S)
    finally:
        loading.close()


def test_the_second_one_may_leave_first(cold: Stand, model: str) -> None:
    loading = two_waiting(cold, model, "second")
    try:
        loading.clients[1].close()
        assert cold.logged("second-2")["outcome"] == "client_gone"
        loading.answers[0].set()
        assert loading.clients[0].read_response().lines()[-1]["done"]
        assert loading.requests[1].client_gone.wait(FREED_S)
    finally:
        loading.close()


def test_an_answer_that_nobody_reads_ends_when_its_load_is_done(cold: Stand, model: str) -> None:
    """The model is there; what it says to nobody would keep those waiting who are still there."""
    cold.fakes[0].tokens, cold.fakes[0].token_delay_s = 10_000, 0.01
    loading = two_waiting(cold, model, "done")
    try:
        loading.clients[0].close()
        assert cold.logged("done-1")["outcome"] == "client_gone"
        loading.answers[0].set()
        assert loading.requests[0].client_gone.wait(FREED_S), "it goes on answering nobody"
        assert not loading.requests[1].client_gone.is_set()
    finally:
        loading.close()


def test_a_hang_up_during_a_load_for_oneself_ends_it(cold: Stand, model: str) -> None:
    cold.fakes[0].fault("/api/chat", faults.StallBeforeHeaders())
    with cold.client() as client:
        send(client, model=model)
        leave(client, "fin", cold.fakes[0].wait_for("/api/chat"))


def test_a_load_of_another_model_is_nobodys_reason_to_go_on(cold: Stand, names: Iterator[str]) -> None:
    cold.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(), times=2)
    with cold.client() as one, cold.client() as other:
        send(one, model=next(names))
        first = cold.fakes[0].wait_for("/api/chat", 1)
        send(other, model=next(names))
        cold.fakes[0].wait_for("/api/chat", 2)
        leave(one, "fin", first)


def test_a_warm_model_is_not_waited_for(cold: Stand, model: str) -> None:
    cold.fakes[0].load_model(model)
    url = f"{cold.url}/api/ps"
    cold.process.wait_until(lambda: f'"{model}:latest"' in cold.process.get("/api/ps").body.decode(), f"{url} has it")
    loading = two_waiting(cold, model, "warm")
    try:
        leave(loading.clients[0], "fin", loading.requests[0])
    finally:
        loading.close()


def test_without_the_setting_a_hang_up_ends_its_load_whoever_waits(site: Stand) -> None:
    for fake in site.fakes:
        fake.unload_model("tiny")
    site.process.wait_until(lambda: b"tiny" not in site.process.get("/api/ps").body, "nothing is loaded")
    loading = two_waiting(site, "tiny", "off")
    try:
        leave(loading.clients[0], "fin", loading.requests[0])
        loading.answers[1].set()
        assert loading.clients[1].read_response().lines()[-1]["done"]
    finally:
        loading.close()


def test_many_that_wait_for_one_load_leave_nothing_behind(cold: Stand, model: str) -> None:
    answer = threading.Event()
    cold.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(answer), times=None)
    clients = [cold.client() for _ in range(12)]
    try:
        for client in clients:
            send(client, model=model, stream=False)
        cold.fakes[0].wait_for("/api/chat", 12)
        for client in clients[::2]:
            client.abort()
        answer.set()
        with ThreadPoolExecutor(6) as pool:
            rest = list(pool.map(RawClient.read_response, clients[1::2]))
    finally:
        for client in clients:
            client.close()
    assert [each.json()["done"] for each in rest] == [True] * 6
    cold.fakes[0].wait_idle()
