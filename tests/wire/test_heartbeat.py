"""Heartbeats keep a connection alive on which nothing moves, and change nothing of what a client understands."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import anthropic
import ollama
import openai
import pytest

from conformance.fakes import faults
from conformance.fakes.http import CutOff, RawClient, RawResponse
from tests.product import INFERENCE, NO_BREAKER, STREAMING, Stand, question, stand
from tests.wire.scripted import CHUNKED, JSON_UTF8, LAST_CHUNK, Packets, chunk, kind_of

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

EVERY_S = 0.04
NATIVE = ("/api/chat", "/api/generate")
HELLO: Any = [{"role": "user", "content": "hi"}]
SAID = "Hello from a."
COMMENT = b": keepalive\n\n"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("heartbeat"), CARAVAN_HEARTBEAT=str(EVERY_S), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


@pytest.fixture(scope="module")
def patient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A product whose first heartbeat comes later than any answer of its test."""
    with stand(tmp_path_factory.mktemp("patient"), CARAVAN_HEARTBEAT="10", **NO_BREAKER) as made:
        yield made


def send(client: RawClient, path: str, asked: dict[str, Any]) -> None:
    client.send_request("POST", path, json.dumps(asked).encode())


def begun(client: RawClient, beats: int = 3) -> tuple[RawResponse, Iterator[bytes]]:
    """The head of an answer and the rest of its body, after so many heartbeats."""
    head = client.read_head()
    pieces = client.iter_body(head)
    assert {next(pieces).strip(b" ") for _ in range(beats)} <= {b"", COMMENT}
    return head, pieces


def held(site: Stand, path: str, fake: int = 0) -> threading.Event:
    """Let the next request for a path wait for an event."""
    answer = threading.Event()
    site.fakes[fake].fault(path, faults.StallBeforeHeaders(answer))
    return answer


KINDS = {
    **{(path, True): kind_of(path) for path in STREAMING},
    **{(path, False): "application/json" for path in INFERENCE},
}


@pytest.mark.parametrize(("path", "stream"), KINDS)
def test_the_first_byte_comes_while_the_backend_is_silent(site: Stand, path: str, stream: bool) -> None:
    answer = held(site, path)
    asked = question(path, stream=stream if path in STREAMING else None)
    with site.client() as client:
        send(client, path, asked)
        head, pieces = begun(client)
        assert not answer.is_set()
        answer.set()
        body = b"".join(pieces)
        # The connection goes on.
        assert client.request("GET", "/api/version").status == 200
    assert head.status == 200
    assert (head.content_type or "").startswith(KINDS[path, stream])
    plain = site.fakes[1]
    assert b"error" not in body.replace(b'"error":null', b"")
    assert plain.count(path) == 0
    assert_readable(path, stream, body)


def assert_readable(path: str, stream: bool, body: bytes) -> None:
    """What a client makes of it is the whole answer."""
    if not stream:
        assert isinstance(json.loads(body), dict)
    elif path in NATIVE:
        records = [json.loads(line) for line in body.splitlines()]
        assert records[-1]["done"] is True
        assert (
            "".join(record.get("response", "") or record.get("message", {}).get("content", "") for record in records)
            == SAID
        )
    else:
        blocks = body.replace(COMMENT, b"").split(b"\n\n")
        assert all(block.startswith((b"data: ", b"event: ")) for block in blocks if block)


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", STREAMING)
def test_an_answer_that_comes_in_time_has_no_heartbeat(patient: Stand, path: str, stream: bool) -> None:
    answer = patient.post(path, question(path, stream=stream))
    assert answer.complete
    assert not answer.body.startswith(b" ")
    assert COMMENT not in answer.body


def test_nothing_is_sent_before_it_is_time(site: Stand) -> None:
    answer = held(site, "/api/chat")
    with site.client() as client:
        began_s = time.monotonic()
        send(client, "/api/chat", question("/api/chat"))
        client.read_head()
        assert time.monotonic() - began_s >= EVERY_S
        answer.set()


def test_a_stream_that_pauses_later_gets_none(site: Stand) -> None:
    """Inside an answer silence is the backend's own, and a blank in the middle of a record would break it."""
    go_on = threading.Event()
    site.fakes[0].fault("/api/chat", faults.StreamThen(1, faults.Stall(go_on)))
    with site.client() as client:
        send(client, "/api/chat", question("/api/chat"))
        head = client.read_head()
        pieces = client.iter_body(head)
        assert b'"Hello"' in next(piece for piece in pieces if piece.strip())
        client.sock.settimeout(4 * EVERY_S)
        with pytest.raises(TimeoutError):
            next(pieces)
        go_on.set()


# --- official clients ----------------------------------------------------------------------------


def test_the_ollama_client_reads_answers_behind_heartbeats(site: Stand) -> None:
    for path in (*NATIVE, "/api/embed"):
        site.fakes[0].fault(path, faults.SlowLoad(2.5 * EVERY_S), times=2)
    with ollama.Client(host=site.url) as client:
        assert "".join(part.message.content or "" for part in client.chat("tiny", HELLO, stream=True)) == SAID
        assert client.chat("tiny", HELLO).message.content == SAID
        assert "".join(part.response for part in client.generate("tiny", "hi", stream=True)) == SAID
        assert client.generate("tiny", "hi").response == SAID
        assert len(client.embed("tiny", "one").embeddings) == 1


def test_the_openai_client_reads_answers_behind_heartbeats(site: Stand) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"):
        site.fakes[0].fault(path, faults.SlowLoad(2.5 * EVERY_S), times=2)
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="unused", max_retries=0) as client:
        parts = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == SAID
        assert client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message.content == SAID
        texts = client.completions.create(model="tiny", prompt="hi", stream=True)
        assert "".join(part.choices[0].text for part in texts if part.choices) == SAID
        kinds = [event.type for event in client.responses.create(model="tiny", input="hi", stream=True)]
        assert kinds[-1] == "response.completed"
        assert client.responses.create(model="tiny", input="hi").output_text == SAID
        assert len(client.embeddings.create(model="tiny", input="one").data) == 1


def test_the_anthropic_client_reads_answers_behind_heartbeats(site: Stand) -> None:
    site.fakes[0].fault("/v1/messages", faults.SlowLoad(2.5 * EVERY_S), times=2)
    with anthropic.Anthropic(base_url=site.url, api_key="unused", max_retries=0) as client:
        with client.messages.stream(model="tiny", max_tokens=100, messages=HELLO) as stream:
            assert "".join(stream.text_stream) == SAID
        answer = client.messages.create(model="tiny", max_tokens=100, messages=HELLO)
        assert answer.content[0].text == SAID  # type: ignore[union-attr]


# --- failover and errors behind them -------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", STREAMING)
def test_failover_goes_on_behind_heartbeats(site: Stand, path: str, stream: bool) -> None:
    go = threading.Event()
    site.fakes[0].fault(path, AfterBeats(faults.Error500("boom a"), go))
    answer = behind_a_beat(site, path, question(path, stream=stream), go)
    assert answer.body.startswith(COMMENT if stream and path not in NATIVE else b" ")
    assert b"boom" not in answer.body
    assert b"Hello" in answer.body
    assert site.counts(path) == [1, 1]


class AfterBeats(faults.Fault):
    """Another fault, once the client says that it has had heartbeats; after a while where a client cannot say so."""

    def __init__(self, fault: faults.Fault, until: threading.Event | float = 2.5 * EVERY_S) -> None:
        self._fault = fault
        self._until = until

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.wait(self._until)
        await self._fault.play(exchange)


def behind_a_beat(site: Stand, path: str, asked: dict[str, Any], go: threading.Event) -> RawResponse:
    """The answer to a question, of which nobody but Caravan says a thing before the client has its head."""
    with site.client() as client:
        send(client, path, asked)
        head = client.read_head()
        go.set()
        return client.read_body(head)


def fail_behind_a_beat(site: Stand, path: str, name: str, stream: bool | None) -> RawResponse:
    """The answer where every backend fails."""
    go = threading.Event()
    for fake in site.fakes:
        fake.load_model("tiny")
        fake.fault(path, AfterBeats(ERRORS[name], go), times=None)
    return behind_a_beat(site, path, question(path, stream=stream), go)


ERRORS: dict[str, faults.Fault] = {
    "500 from all": faults.Error500("boom"),
    "400": faults.Status(400, '{"error":"boom"}'),
    "busy": faults.Refuse503Busy(),
    "no answer": faults.EofBeforeHeaders(),
}
ERROR_KEYS = {"/v1/messages": {"type", "error"}, "/v1/responses": {"type", "code", "message", "param", "error"}}


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("path", STREAMING)
def test_an_error_behind_a_heartbeat_is_a_record_of_the_stream(site: Stand, path: str, name: str) -> None:
    answer = fail_behind_a_beat(site, path, name, stream=True)
    assert (answer.status, answer.ended) == (200, "complete")
    if path in NATIVE:
        record = json.loads(answer.body.splitlines()[-1])
    else:
        block = answer.body.removesuffix(b"\n\n").rpartition(b"\n\n")[2].splitlines()
        record = json.loads(block[-1].removeprefix(b"data: "))
        assert path.startswith("/v1/c") or block[0] == b"event: error"
    assert set(record) == ERROR_KEYS.get(path, {"error"})


@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions", "/v1/messages"])
def test_an_error_behind_a_heartbeat_cuts_an_answer_that_has_no_room_for_it(site: Stand, path: str, name: str) -> None:
    answer = fail_behind_a_beat(site, path, name, stream=False if path in STREAMING else None)
    assert (answer.status, answer.ended) == (200, "cut")
    assert answer.body.strip() == b""


def test_silence_for_too_long_is_an_error_behind_heartbeats(tmp_path: Path) -> None:
    times = {"CARAVAN_FIRST_BYTE_TIMEOUT": "1", "CARAVAN_LOAD_TIMEOUT": "1", "CARAVAN_HEARTBEAT": str(EVERY_S)}
    with stand(tmp_path, **times, **NO_BREAKER) as site:
        for fake in site.fakes:
            fake.fault("/api/chat", faults.StallBeforeHeaders(), times=None)
        questions = [question("/api/chat", stream=stream) for stream in (True, False)]
        with ThreadPoolExecutor(2) as pool:
            stream, whole = pool.map(partial(site.post, "/api/chat"), questions)
    assert "did not begin to answer" in json.loads(stream.body.splitlines()[-1])["error"]
    assert (whole.status, whole.ended, whole.body.strip()) == (200, "cut", b"")


def test_official_clients_raise_on_an_error_behind_a_heartbeat(site: Stand) -> None:
    for path in ("/api/chat", "/v1/chat/completions", "/v1/responses", "/v1/messages"):
        for fake in site.fakes:
            fake.fault(path, AfterBeats(faults.Error500("boom")))
    with ollama.Client(host=site.url) as native, pytest.raises(ollama.ResponseError, match="boom"):
        list(native.chat("tiny", HELLO, stream=True))
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="unused", max_retries=0) as compat:
        with pytest.raises(openai.APIError):
            list(compat.chat.completions.create(model="tiny", messages=HELLO, stream=True))
        with pytest.raises(openai.APIError):
            list(compat.responses.create(model="tiny", input="hi", stream=True))
    with (
        anthropic.Anthropic(base_url=site.url, api_key="unused", max_retries=0) as client,
        pytest.raises(anthropic.APIError),
        client.messages.stream(model="tiny", max_tokens=100, messages=HELLO) as stream,
    ):
        stream.get_final_message()


def test_a_cut_behind_heartbeats_is_told_like_any_other(site: Stand) -> None:
    site.fakes[0].token_delay_s = 0.02
    go = threading.Event()
    site.fakes[0].fault("/api/chat", AfterBeats(faults.StreamThen(2, faults.Eof), go))
    answer = behind_a_beat(site, "/api/chat", question("/api/chat"), go)
    assert answer.complete
    assert set(json.loads(answer.body.splitlines()[-1])) == {"error"}
    assert site.counts("/api/chat") == [1, 0]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "cut"])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_long_json_answer_behind_heartbeats_is_whole_or_visibly_cut(site: Stand, framing: str, whole: bool) -> None:
    body = b'{"embeddings":[],"padding":"' + b"x" * (3 << 20) + b'"}'
    length = CHUNKED if framing == "chunks" else ("Content-Length", str(len(body)))
    sent = body if whole else body[:-10]
    packets = [chunk(sent), *([LAST_CHUNK] if whole else [])] if framing == "chunks" else [sent]
    go = threading.Event()
    site.fakes[0].fault("/api/embed", AfterBeats(Packets([("Content-Type", JSON_UTF8), length], packets), go))
    answer = behind_a_beat(site, "/api/embed", question("/api/embed"), go)
    assert answer.ended == ("complete" if whole else "cut")
    assert len(answer.body.lstrip(b" ")) == len(body) or not whole
    assert site.counts("/api/embed") == [1, 0]


def test_an_error_in_time_keeps_its_status(patient: Stand) -> None:
    assert patient.post("/api/chat", question("/api/chat", "nope")).status == 404
    assert patient.post("/api/chat", question("/api/chat", think="often")).status == 400
    for fake in patient.fakes:
        fake.fault("/api/chat", faults.Error500("boom"))
    assert patient.post("/api/chat").status == 500


@pytest.mark.parametrize("coding", ["gzip"])
def test_a_compressed_answer_behind_a_heartbeat_is_not_passed_on_as_text(site: Stand, coding: str) -> None:
    """Its head has gone out without a word of a coding: what follows would be garbage."""
    headers = [("Content-Type", kind_of("/api/chat")), ("Content-Encoding", coding), CHUNKED]
    go = threading.Event()
    for fake in site.fakes:
        fake.fault("/api/chat", AfterBeats(Packets(headers, [chunk(b"\x1f\x8b\x08garbage"), LAST_CHUNK]), go))
    answer = behind_a_beat(site, "/api/chat", question("/api/chat"), go)
    assert b"\x1f\x8b" not in answer.body
    assert answer.ended == "cut" or set(json.loads(answer.body.splitlines()[-1])) == {"error"}


# --- clients that leave --------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("way", ["fin", "rst"])
def test_a_hang_up_between_heartbeats_frees_the_backend(site: Stand, way: str, stream: bool) -> None:
    held(site, "/api/chat")
    with site.client() as client:
        send(client, "/api/chat", question("/api/chat", stream=stream))
        begun(client)
        request = site.fakes[0].wait_for("/api/chat")
        left_s = time.monotonic()
        client.close() if way == "fin" else client.abort()
        assert request.client_gone.wait(5)
        assert request.gone_after_s is not None
        assert request.at + request.gone_after_s - left_s < 2
    assert site.counts("/api/chat") == [1, 0]


def test_a_hang_up_before_the_first_heartbeat_frees_the_backend(site: Stand) -> None:
    held(site, "/api/chat")
    with site.client() as client:
        send(client, "/api/chat", question("/api/chat"))
        request = site.fakes[0].wait_for("/api/chat")
        client.abort()
        assert request.client_gone.wait(5)


def test_a_hang_up_in_a_stream_behind_heartbeats_frees_the_backend(site: Stand) -> None:
    site.fakes[0].tokens, site.fakes[0].token_delay_s = 10_000, 0.02
    answer = held(site, "/api/chat")
    with site.client() as client:
        send(client, "/api/chat", question("/api/chat"))
        _, pieces = begun(client)
        answer.set()
        assert b"Hello" in next(piece for piece in pieces if piece.strip())
        client.close()
        assert site.fakes[0].wait_for("/api/chat").client_gone.wait(5)


def test_many_that_leave_between_heartbeats_leave_the_worker_well(site: Stand) -> None:
    for fake in site.fakes:
        fake.fault("/api/chat", faults.StallBeforeHeaders(), times=None)
    clients = [site.client() for _ in range(30)]
    for client in clients:
        send(client, "/api/chat", question("/api/chat"))
    for client in clients:
        begun(client, 1)
        client.abort()
    for fake in site.fakes:
        fake.wait_idle()
        fake.clear_faults()
    assert site.post("/api/chat").complete
    assert "Traceback" not in site.process.output


def test_an_http_1_0_client_gets_heartbeats_too(site: Stand) -> None:
    answer = held(site, "/api/chat")
    body = json.dumps(question("/api/chat")).encode()
    with site.client() as client:
        client.send(b"POST /api/chat HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        head = client.read_head()
        pieces = client.iter_body(head)
        assert next(pieces) == b" "
        answer.set()
        lines = b"".join(pieces).splitlines()
    assert json.loads(lines[-1])["done"] is True


def test_a_hundred_silent_answers_beat_at_once(site: Stand) -> None:
    answer = threading.Event()
    site.fakes[0].fault("/api/chat", faults.StallBeforeHeaders(answer), times=None)
    with ThreadPoolExecutor(100) as pool:
        asked = [pool.submit(site.post, "/api/chat") for _ in range(100)]
        site.fakes[0].wait_for("/api/chat", 100)
        # One more is served while they wait.
        assert site.post("/api/generate").complete
        answer.set()
        assert all(each.result().body.splitlines()[-1].endswith(b"}") for each in asked)


def test_without_the_setting_nothing_is_sent(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("still"), CARAVAN_FIRST_BYTE_TIMEOUT="60") as two:
        answer = held(two, "/api/chat")
        with two.client() as client:
            send(client, "/api/chat", question("/api/chat"))
            client.sock.settimeout(4 * EVERY_S)
            with pytest.raises((TimeoutError, CutOff)):
                client.read_head()
            answer.set()
