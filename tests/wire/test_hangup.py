"""A client that leaves: its backend's connection is closed at once, also before the first byte."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator

import pytest

from conformance.fakes import faults
from conformance.fakes.http import RawClient
from conformance.fakes.recorded import RecordedRequest
from tests.product import INFERENCE, NO_BREAKER, STREAMING, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

# Deadline in seconds for the close to reach the backend; the worker sees it within milliseconds.
SOON_S = 10.0
WAYS = {
    "fin": lambda client: client.close(),
    "rst": lambda client: client.abort(),
    "half close": lambda client: client.sock.shutdown(socket.SHUT_WR),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("hangup"), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


def assert_left(request: RecordedRequest) -> None:
    assert request.client_gone.wait(SOON_S), "the backend goes on working for nobody"


def ask(client: RawClient, path: str, stream: bool | None) -> None:
    client.send_request("POST", path, json.dumps(question(path, stream=stream)).encode())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_hang_up_during_prefill_reaches_the_backend(site: Stand, stream: bool, way: str) -> None:
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders())
    with site.client() as client:
        ask(client, "/api/chat", stream)
        request = site.fakes[0].wait_for("/api/chat")
        assert not request.client_gone.is_set()
        WAYS[way](client)
        assert_left(request)
    # A client that left is no fault of the backend: nobody else is asked.
    assert site.counts("/api/chat") == [1, 0]
    assert site.post("/api/chat").status == 200


@pytest.mark.parametrize("said", [b"\r\n", b"GET /api/version HTTP/1.1\r\n"])
@pytest.mark.parametrize("way", WAYS)
def test_who_says_more_and_leaves_has_left(site: Stand, way: str, said: bytes) -> None:
    """In prefill, and where a stream has fallen silent."""
    for fault in (faults.StallBeforeHeaders(), faults.StreamThen(2, faults.Stall)):
        site.fakes[0].fault("/api/chat", fault)
        site.fakes[0].forget_requests()
        with site.client() as client:
            ask(client, "/api/chat", True)
            request = site.fakes[0].wait_for("/api/chat")
            if isinstance(fault, faults.StreamThen):
                assert next(client.iter_body(client.read_head()))
            client.send(said)
            assert not request.client_gone.wait(0.3), "who says something is there"
            WAYS[way](client)
            assert_left(request)


@pytest.mark.parametrize("path", INFERENCE)
def test_a_hang_up_during_prefill_reaches_the_backend_on_every_route(site: Stand, path: str) -> None:
    site.fakes[0].fault(path, faults.StallBeforeHeaders())
    with site.client() as client:
        ask(client, path, None)
        request = site.fakes[0].wait_for(path)
        client.close()
        assert_left(request)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("path", STREAMING)
def test_a_hang_up_in_mid_stream_reaches_the_backend(site: Stand, path: str, way: str) -> None:
    # Silence after two tokens: nothing is written any more, so only a watch can notice.
    site.fakes[0].fault(path, faults.StreamThen(2, faults.Stall))
    with site.client() as client:
        ask(client, path, True)
        head = client.read_head()
        assert next(client.iter_body(head))
        WAYS[way](client)
        assert_left(site.fakes[0].wait_for(path))


def test_a_hang_up_while_tokens_flow_reaches_the_backend(site: Stand) -> None:
    site.fakes[0].tokens, site.fakes[0].token_delay_s = 10_000, 0.005
    with site.client() as client:
        ask(client, "/api/chat", True)
        head = client.read_head()
        assert next(client.iter_body(head))
        client.abort()
        assert_left(site.fakes[0].wait_for("/api/chat"))


def test_a_hang_up_during_a_long_whole_answer_reaches_the_backend(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.StreamThen(0, faults.Stall))
    with site.client() as client:
        ask(client, "/api/chat", False)
        request = site.fakes[0].wait_for("/api/chat")
        client.close()
        assert_left(request)


def test_a_client_that_reads_nothing_does_not_stop_the_others(site: Stand) -> None:
    # More than all buffers on the way take.
    endless = question("/api/chat", options={"fake_tokens": 400_000})
    with site.client() as deaf:
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.send_request("POST", "/api/chat", json.dumps(endless).encode())
        request = site.fakes[0].wait_for("/api/chat")
        assert site.post("/api/chat").complete
        assert not request.ended.is_set()
    assert_left(request)


def test_a_pipelined_request_is_no_hang_up(site: Stand) -> None:
    go_on = threading.Event()
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(go_on))
    body = json.dumps(question("/api/chat", stream=False)).encode()
    with site.client() as client:
        client.send_request("POST", "/api/chat", body)
        request = site.fakes[0].wait_for("/api/chat")
        client.send_request("GET", "/api/version")
        assert not request.client_gone.wait(0.2), "who says something is there"
        go_on.set()
        first, second = client.read_response(), client.read_response()
    assert first.json()["done"]
    assert second.json()["version"]


def test_hang_ups_leave_no_request_in_flight_and_the_worker_well(site: Stand) -> None:
    for fake in site.fakes:
        fake.fault("/api/chat", faults.StallBeforeHeaders(), times=None)
    clients = [site.client() for _ in range(30)]
    for client in clients:
        ask(client, "/api/chat", True)
    site.fakes[0].wait_for("/api/chat", 30)
    for client in clients:
        client.abort()
    for fake in site.fakes:
        fake.wait_idle()
        fake.clear_faults()
    assert site.post("/api/chat").complete
    assert "Traceback" not in site.process.output
