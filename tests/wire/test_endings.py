"""How an answer ends: whole as its backend said it, or visibly broken; never cut and complete-looking."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import anthropic
import ollama
import openai
import pytest

from conformance.fakes import faults
from conformance.fakes.faults import StreamThen
from conformance.fakes.http import RawResponse, fetch
from tests.product import NO_BREAKER, STREAMING, Stand, question, stand
from tests.wire.scripted import (
    CHUNKED,
    JSON_UTF8,
    LAST_CHUNK,
    AsPlanned,
    Halting,
    Packets,
    chunk,
    chunked,
    cut,
    kind_of,
)

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

NATIVE = ("/api/chat", "/api/generate")
COMPATIBLE = tuple(path for path in STREAMING if path not in NATIVE)
MIB = 1 << 20
HELLO: Any = [{"role": "user", "content": "hi"}]
# What the last record of a stream that broke is, by the route.
ERROR_KEYS = {"/v1/messages": {"type", "error"}, "/v1/responses": {"type", "code", "message", "param", "error"}}
END_MARKS = (b'"done":true', b"[DONE]", b"message_stop", b"response.completed")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("endings"), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


def ask(site: Stand, path: str, stream: bool | None = True) -> RawResponse:
    return site.post(path, question(path, stream=stream))


def halted(site: Stand, path: str, fault: faults.Fault) -> threading.Event:
    """Let the first backend go on with its answer, after the beginning, once the event is set."""
    begun = threading.Event()
    site.fakes[0].fault(path, Halting(fault, begun))
    return begun


def ask_until_broken(
    site: Stand, path: str, fault: faults.Fault, asked: Any = None, headers: Mapping[str, str] | None = None
) -> RawResponse:
    """A stream whose backend does what it does when the answer has begun at the client: it cannot fail over then."""
    begun = halted(site, path, fault)
    with site.client() as client:
        body = json.dumps(asked or question(path, stream=True)).encode()
        client.send_request("POST", path, body, headers)
        return client.read_response(begun=begun)


def last_record(path: str, body: bytes) -> dict[str, Any]:
    """The last record of a stream, parsed."""
    end = b"\n" if path in NATIVE else b"\n\n"
    assert body.endswith(end), body[-200:]
    lines = body.removesuffix(end).rpartition(end)[2].splitlines()
    found: dict[str, Any] = json.loads(lines[-1].removeprefix(b"data: "))
    if path in ("/v1/messages", "/v1/responses"):
        assert lines[0] == b"event: error", lines
    return found


def assert_broken_in_words(path: str, answer: RawResponse) -> None:
    """The answer ends in an error record of its dialect, and nothing in it says that it is whole."""
    assert (answer.status, answer.ended) == (200, "complete")
    assert set(last_record(path, answer.body)) == ERROR_KEYS.get(path, {"error"})
    assert not [mark for mark in END_MARKS if mark in answer.body]


# --- clean ends without the end mark -------------------------------------------------------------


@pytest.mark.parametrize("path", STREAMING)
def test_a_clean_end_without_the_end_mark_becomes_an_error_record(site: Stand, path: str) -> None:
    answer = ask_until_broken(site, path, faults.CleanEndWithoutDone(2))
    assert_broken_in_words(path, answer)
    # Its two tokens came before, and it was not begun anew elsewhere.
    assert b"Hello" in answer.body
    assert site.counts(path) == [1, 0]


@pytest.mark.parametrize("path", COMPATIBLE)
def test_an_error_that_ollama_swallows_becomes_an_error_record(site: Stand, path: str) -> None:
    assert_broken_in_words(path, ask_until_broken(site, path, StreamThen(2, faults.ErrorRecord())))
    assert site.counts(path) == [1, 0]


@pytest.mark.parametrize("path", COMPATIBLE)
def test_what_ollama_swallowed_in_a_recorded_stream_becomes_an_error_record(site: Stand, path: str) -> None:
    asked = question(path, stream=True)
    asked |= {key: "ERRMID" for key in ("prompt", "input") if key in asked}
    if "messages" in asked:
        asked["messages"] = [{"role": "user", "content": "ERRMID"}]
    assert_broken_in_words(path, ask_until_broken(site, path, AsPlanned(), asked))


@pytest.mark.parametrize("path", STREAMING)
def test_a_stream_without_any_record_fails_over(site: Stand, path: str) -> None:
    site.fakes[0].fault(path, chunked(path))
    answer = ask(site, path)
    assert [mark for mark in END_MARKS if mark in answer.body]
    assert site.counts(path) == [1, 1]


@pytest.mark.parametrize("path", STREAMING)
def test_an_end_of_the_connection_in_mid_record_becomes_an_error_record(site: Stand, path: str) -> None:
    """A body without chunks or length: its backend's FIN is all that ends it. On /v1 it comes within an event."""
    body = fetch(site.fakes[1].url + path, "POST", json=question(path, stream=True)).body
    records = body.splitlines(keepends=True)[: 2 if path in NATIVE else 4]
    site.fakes[0].fault(path, Packets((("Content-Type", kind_of(path)),), records))
    assert_broken_in_words(path, ask(site, path))


@pytest.mark.parametrize("path", STREAMING)
def test_a_stream_that_is_over_at_once_without_its_end_mark_fails_over(site: Stand, path: str) -> None:
    """Nothing has gone out yet."""
    record = token_of(path, "Nobody heard this")
    site.fakes[0].fault(path, Packets([("Content-Type", kind_of(path)), CHUNKED], [chunk(record) + LAST_CHUNK]))
    answer = ask(site, path)
    assert b"Nobody" not in answer.body
    assert [mark for mark in END_MARKS if mark in answer.body]
    assert site.counts(path) == [1, 1]


@pytest.mark.parametrize("path", STREAMING)
def test_the_log_tells_that_an_answer_was_cut(site: Stand, path: str) -> None:
    given = f"cut-{path.replace('/', '-')}"
    ask_until_broken(site, path, faults.CleanEndWithoutDone(2), headers={"X-Request-Id": given})
    assert site.logged(given)["outcome"] == "truncated"


CLEAN_ENDS: dict[str, Callable[[], faults.Fault]] = {
    "no end mark": lambda: faults.CleanEndWithoutDone(2),
    "swallowed error": lambda: StreamThen(2, faults.ErrorRecord()),
}
ends = pytest.mark.parametrize("name", CLEAN_ENDS)


def read(stream: Iterable[Any], begun: threading.Event) -> None:
    """Read an answer to its end, and say when it has begun."""
    for _ in stream:
        begun.set()


@ends
def test_the_ollama_client_raises(site: Stand, name: str) -> None:
    begun = {path: halted(site, path, CLEAN_ENDS[name]()) for path in NATIVE}
    with ollama.Client(host=site.url) as client:
        with pytest.raises(ollama.ResponseError):
            read(client.chat("tiny", HELLO, stream=True), begun["/api/chat"])
        with pytest.raises(ollama.ResponseError):
            read(client.generate("tiny", "hi", stream=True), begun["/api/generate"])


@ends
def test_the_openai_client_raises(site: Stand, name: str) -> None:
    paths = ("/v1/chat/completions", "/v1/completions", "/v1/responses")
    chat, completion, response = (halted(site, path, CLEAN_ENDS[name]()) for path in paths)
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="unused", max_retries=0) as client:
        with pytest.raises(openai.APIError):
            read(client.chat.completions.create(model="tiny", messages=HELLO, stream=True), chat)
        with pytest.raises(openai.APIError):
            read(client.completions.create(model="tiny", prompt="hi", stream=True), completion)
        with pytest.raises(openai.APIError):
            read(client.responses.create(model="tiny", input="hi", stream=True), response)


@ends
def test_the_anthropic_client_raises(site: Stand, name: str) -> None:
    begun = halted(site, "/v1/messages", CLEAN_ENDS[name]())
    with (
        anthropic.Anthropic(base_url=site.url, api_key="unused", max_retries=0) as client,
        pytest.raises(anthropic.APIError),
        client.messages.stream(model="tiny", max_tokens=100, messages=HELLO) as stream,
    ):
        read(stream, begun)


# --- whole answers in every cut ------------------------------------------------------------------


def one_packet(body: bytes) -> list[bytes]:
    return [chunk(body) + LAST_CHUNK]


def single_bytes(body: bytes) -> list[bytes]:
    """The last 48 bytes, in which the end mark stands, in a chunk and a packet each."""
    return [chunk(body[:-48]), *(chunk(bytes([byte])) for byte in body[-48:]), LAST_CHUNK]


def odd_chunks(body: bytes) -> list[bytes]:
    """Chunks that end anywhere in a record, each in a packet."""
    return [*map(chunk, cut(body, 12, seed=1)), LAST_CHUNK]


def odd_packets(body: bytes) -> list[bytes]:
    """Good chunks in packets that are cut anywhere, also within a chunk's size."""
    records = body.splitlines(keepends=True)
    return cut(b"".join(map(chunk, records)) + LAST_CHUNK, 25, seed=2)


def mark_at_a_border(body: bytes) -> list[bytes]:
    """The packet ends where the chunk's data do, and its line end comes with the next one."""
    stream = chunk(body[:-20]) + chunk(body[-20:]) + LAST_CHUNK
    place = len(chunk(body[:-20])) - 2
    return [stream[:place], stream[place : place + 4], stream[place + 4 :]]


IN_CHUNKS: dict[str, Callable[[bytes], list[bytes]]] = {
    "one packet": one_packet,
    "single bytes": single_bytes,
    "odd chunks": odd_chunks,
    "odd packets": odd_packets,
    "a border": mark_at_a_border,
}


@pytest.mark.parametrize("form", IN_CHUNKS)
@pytest.mark.parametrize("path", STREAMING)
def test_a_whole_stream_passes_as_it_is_however_it_is_cut(site: Stand, path: str, form: str) -> None:
    body = fetch(site.fakes[1].url + path, "POST", json=question(path, stream=True)).body
    site.fakes[0].fault(path, Packets((("Content-Type", kind_of(path)), CHUNKED), IN_CHUNKS[form](body)))
    answer = ask(site, path)
    assert (answer.status, answer.ended, answer.body) == (200, "complete", body)


@pytest.mark.parametrize("framing", ["length", "close"])
@pytest.mark.parametrize("path", STREAMING)
def test_a_whole_stream_passes_as_it_is_whatever_ends_it(site: Stand, path: str, framing: str) -> None:
    body = fetch(site.fakes[1].url + path, "POST", json=question(path, stream=True)).body
    length = [("Content-Length", str(len(body)))] if framing == "length" else []
    site.fakes[0].fault(path, Packets([("Content-Type", kind_of(path)), *length], cut(body, 9, seed=3)))
    answer = ask(site, path)
    assert (answer.status, answer.ended, answer.body) == (200, "complete", body)


def context_record() -> bytes:
    """The last line of /api/generate after a long talk."""
    value = {"model": "tiny", "response": "", "done": True, "done_reason": "stop", "context": [*range(40_000)]}
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def response_record() -> bytes:
    """The last event of /v1/responses repeats all that was said."""
    value = {"type": "response.completed", "response": {"output_text": "word " * 40_000, "status": "completed"}}
    return b"event: response.completed\ndata: " + json.dumps(value).encode() + b"\n\n"


def message_record() -> bytes:
    """A final line of /api/chat that says much itself, with its mark at the end."""
    value = {"message": {"role": "assistant", "content": "word " * 40_000}, "done": True, "eval_count": 40_000}
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


LONG = {
    "/api/generate": (b'{"response":"Hel","done":false}\n', context_record()),
    "/api/chat": (b'{"message":{"content":"Hel"},"done":false}\n', message_record()),
    "/v1/responses": (b'event: response.output_text.delta\ndata: {"delta":"Hel"}\n\n', response_record()),
}


def blocks(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


@pytest.mark.parametrize("form", ["records", "blocks", "one chunk"])
@pytest.mark.parametrize("path", LONG)
def test_a_last_record_above_64_kib_is_seen(site: Stand, path: str, form: str) -> None:
    token, last = LONG[path]
    body = token * 2000 + last
    assert len(last) > 128 << 10
    pieces = {"records": [token * 2000, last], "blocks": blocks(body, 4096), "one chunk": [body]}[form]
    packets = [*map(chunk, pieces), LAST_CHUNK]
    site.fakes[0].fault(path, Packets((("Content-Type", kind_of(path)), CHUNKED), packets, pause_s=0))
    answer = ask(site, path)
    assert (answer.ended, len(answer.body)) == ("complete", len(body)), answer.body[-200:]
    assert answer.body == body


@pytest.mark.parametrize("form", ["records", "blocks"])
@pytest.mark.parametrize("path", LONG)
def test_a_last_record_above_64_kib_that_never_came_is_missed(site: Stand, path: str, form: str) -> None:
    token, _ = LONG[path]
    body = token * 4000
    pieces = [token * 1000] * 4 if form == "records" else blocks(body, 4096)
    answer = ask_until_broken(site, path, chunked(path, *pieces))
    assert answer.body.startswith(body)
    assert_broken_in_words(path, answer)


def test_an_end_mark_in_one_chunk_with_the_usage_is_seen(site: Stand) -> None:
    path = "/v1/chat/completions"
    token = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
    usage = b'data: {"choices":[],"usage":{"total_tokens":9}}\n\n'
    site.fakes[0].fault(path, chunked(path, token, usage + b"data: [DONE]\n\n"))
    answer = ask(site, path)
    assert (answer.ended, answer.body) == ("complete", token + usage + b"data: [DONE]\n\n")


# --- what only looks like an end -----------------------------------------------------------------

QUOTED = '"done":true}\n{"done":true}\n\ndata: [DONE]\n\nevent: message_stop\ndata: {"type":"response.completed"}\n\n'


def token_of(path: str, text: str) -> bytes:
    """A record of a stream in which the model says this."""
    values: dict[str, tuple[str, Mapping[str, Any]]] = {
        "/api/chat": ("", {"message": {"role": "assistant", "content": text}, "done": False}),
        "/api/generate": ("", {"response": text, "done": False}),
        "/v1/chat/completions": ("", {"choices": [{"index": 0, "delta": {"content": text}}]}),
        "/v1/completions": ("", {"choices": [{"index": 0, "text": text}]}),
        "/v1/responses": ("response.output_text.delta", {"type": "response.output_text.delta", "delta": text}),
        "/v1/messages": ("content_block_delta", {"delta": {"text": text}, "type": "content_block_delta"}),
    }
    event, value = values[path]
    line = json.dumps(value, separators=(",", ":")).encode()
    if path in NATIVE:
        return line + b"\n"
    return (f"event: {event}\n".encode() if event else b"") + b"data: " + line + b"\n\n"


@pytest.mark.parametrize("cut_up", [False, True], ids=["a record", "cut up"])
@pytest.mark.parametrize("path", STREAMING)
def test_a_text_that_quotes_every_end_mark_is_no_end(site: Stand, path: str, cut_up: bool) -> None:
    record = token_of(path, QUOTED)
    pieces = [record, *cut(record, 20, seed=4)] if cut_up else [record, record]
    answer = ask_until_broken(site, path, chunked(path, *pieces))
    assert answer.body.startswith(record * 2)
    assert set(last_record(path, answer.body)) == ERROR_KEYS.get(path, {"error"})


@pytest.mark.parametrize("arguments", [{"done": True}, {"status": "success"}], ids=["done", "success"])
def test_an_argument_of_a_tool_is_no_end(site: Stand, arguments: dict[str, Any]) -> None:
    call = {"function": {"name": "finish", "arguments": arguments}}
    value = {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False}
    record = json.dumps(value, separators=(",", ":")).encode() + b"\n"
    answer = ask_until_broken(site, "/api/chat", chunked("/api/chat", record, record))
    assert answer.body.startswith(record * 2)
    assert set(last_record("/api/chat", answer.body)) == {"error"}


HALF_ENDS = {
    "/api/chat": b'{"message":{"role":"assistant","content":""},"done":true,"done_reason":"st',
    "/api/generate": b'{"response":"","done":true,"context":[1,2,3,',
    "/v1/responses": b'event: response.completed\ndata: {"type":"response.completed","response":{"output',
    "/v1/messages": b'event: message_stop\ndata: {"type":"messa',
}


@pytest.mark.parametrize("path", HALF_ENDS)
def test_a_last_record_that_is_itself_cut_is_no_end(site: Stand, path: str) -> None:
    token = token_of(path, "Hel")
    answer = ask_until_broken(site, path, chunked(path, token, HALF_ENDS[path]))
    assert answer.complete
    assert answer.body.startswith(token + HALF_ENDS[path])
    assert set(last_record(path, answer.body)) == ERROR_KEYS.get(path, {"error"})


# --- garbage -------------------------------------------------------------------------------------

PAGE = b"<!doctype html><html><title>Sign in</title></html>"


def garbage(path: str, stream: bool) -> dict[str, faults.Fault]:
    kind = kind_of(path) if stream else JSON_UTF8
    return {
        "a page as what was asked for": faults.Status(200, PAGE, [("Content-Type", kind)]),
        "a page": faults.Status(200, PAGE, [("Content-Type", "text/html; charset=utf-8")]),
        "a page in chunks": Packets([("Content-Type", kind), CHUNKED], [chunk(PAGE), LAST_CHUNK]),
        "noise": Packets([("Content-Type", kind), CHUNKED], [chunk(b"\x00\xff\x17noise"), LAST_CHUNK]),
        "half of JSON": faults.Status(200, b'{"message":{"content":"Hel', [("Content-Type", JSON_UTF8)]),
        "nothing": faults.Status(200, b"", [("Content-Type", kind)]),
    }


@pytest.mark.parametrize("name", garbage("/", stream=True))
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_garbage_fails_over(site: Stand, path: str, stream: bool, name: str) -> None:
    site.fakes[0].fault(path, garbage(path, stream)[name])
    answer = ask(site, path, stream)
    assert answer.complete
    assert b"Hel" in answer.body
    assert b"<html>" not in answer.body
    assert site.counts(path) == [1, 1]


@pytest.mark.parametrize("path", ["/api/chat", "/v1/messages"])
def test_garbage_from_everybody_is_an_error_that_shows_none_of_it(site: Stand, path: str) -> None:
    for fake in site.fakes:
        fake.fault(path, faults.Status(200, PAGE, [("Content-Type", "text/html")]))
    answer = ask(site, path)
    assert answer.status == 502
    assert b"Sign in" not in answer.body


# --- JSON, which has no room for a record --------------------------------------------------------


def json_of(size: int) -> bytes:
    return b'{"embeddings":[],"padding":"' + b"x" * size + b'"}'


@pytest.mark.parametrize("size", [2000, MIB - 100])
@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_json_up_to_1_mib_that_is_cut_fails_over(site: Stand, framing: str, size: int) -> None:
    body = json_of(size)
    site.fakes[0].fault("/api/embed", framed(body, body[:-10], framing))
    answer = ask(site, "/api/embed", None)
    assert (answer.status, answer.ended) == (200, "complete")
    assert len(answer.json()["embeddings"]) == 1
    assert site.counts("/api/embed") == [1, 1]


def framed(body: bytes, sent: bytes, framing: str) -> Packets:
    """JSON of which this much is sent."""
    kind = ("Content-Type", JSON_UTF8)
    if framing == "chunks":
        return Packets([kind, CHUNKED], [*map(chunk, blocks(sent, 60_000))], pause_s=0)
    length = [("Content-Length", str(len(body)))] if framing == "length" else []
    return Packets([kind, *length], blocks(sent, 60_000), pause_s=0)


@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_json_above_1_mib_that_is_cut_ends_its_connection(site: Stand, framing: str) -> None:
    body = json_of(3 * MIB)
    site.fakes[0].fault("/api/embed", framed(body, body[:-10], framing))
    with site.client() as client:
        body_sent = json.dumps(question("/api/embed")).encode()
        client.send_request("POST", "/api/embed", body_sent)
        # A second request is on its way already: its answer must not fill what is missing of the first one.
        client.send_request("POST", "/api/embed", body_sent)
        answer = client.read_response()
        assert (answer.status, answer.ended) == (200, "cut")
        assert body.startswith(answer.body)
        assert b"HTTP/1.1" not in answer.body
    assert site.counts("/api/embed")[0] == 1


def test_json_above_1_mib_that_is_cut_is_seen_by_an_http_1_0_client_too(site: Stand) -> None:
    """There is neither a length nor a chunk to miss: only a reset tells."""
    body = json_of(3 * MIB)
    site.fakes[0].fault("/api/embed", framed(body, body[:-10], "chunks"))
    asked = json.dumps(question("/api/embed")).encode()
    with site.client() as client:
        client.send(b"POST /api/embed HTTP/1.0\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(asked) + asked)
        answer = client.read_response()
    assert answer.header("content-length") is None
    assert answer.reset or answer.ended == "cut"


@pytest.mark.parametrize("path", STREAMING)
def test_a_broken_stream_tells_an_http_1_0_client_in_words(site: Stand, path: str) -> None:
    site.fakes[0].fault(path, StreamThen(2, faults.Eof))
    asked = json.dumps(question(path, stream=True)).encode()
    with site.client() as client:
        head = f"POST {path} HTTP/1.0\r\nHost: localhost\r\nContent-Length: {len(asked)}\r\n\r\n"
        client.send(head.encode() + asked)
        answer = client.read_response()
    assert_broken_in_words(path, answer)


# --- compressed ----------------------------------------------------------------------------------


def zipped(path: str, body: bytes, *, whole: bool) -> Packets:
    headers = [("Content-Type", kind_of(path)), ("Content-Encoding", "gzip"), CHUNKED]
    packets = [chunk(piece) for piece in blocks(gzip.compress(body), 16)]
    return Packets(headers, [*packets, LAST_CHUNK] if whole else packets[:-1])


@pytest.mark.parametrize("path", STREAMING)
def test_a_compressed_stream_passes_untouched(site: Stand, path: str) -> None:
    body = token_of(path, "Hel") + b"the end is in there somewhere\n\n"
    site.fakes[0].fault(path, zipped(path, body, whole=True))
    answer = ask(site, path)
    assert (answer.ended, answer.header("content-encoding")) == ("complete", "gzip")
    assert gzip.decompress(answer.body) == body


@pytest.mark.parametrize("path", STREAMING)
def test_a_compressed_stream_that_is_cut_ends_its_connection(site: Stand, path: str) -> None:
    body = token_of(path, "Hello, how are you?") * 3
    site.fakes[0].fault(path, zipped(path, body, whole=False))
    answer = ask(site, path)
    # A record in clear text would be garbage in the middle of it.
    assert answer.ended == "cut"
    assert gzip.compress(body)[10:].startswith(answer.body[10:])


# --- what comes next on the same connections -----------------------------------------------------


@pytest.mark.parametrize("then", [faults.Rst, faults.Eof, faults.HalfChunk, faults.CleanEnd], ids=lambda e: e.__name__)
@pytest.mark.parametrize("path", STREAMING)
def test_after_an_error_record_the_connection_serves_the_next_request(
    site: Stand, path: str, then: type[faults.Ending]
) -> None:
    begun = halted(site, path, StreamThen(2, then))
    asked = question(path, stream=True)
    with site.client() as client:
        client.send_request("POST", path, json.dumps(asked).encode())
        first = client.read_response(begun=begun)
        assert first.complete
        second = client.request("POST", "/api/generate", json=question("/api/generate", "only-b", stream=False))
        third = client.request("POST", path, json=asked)
    assert second.json()["response"] == "Hello from b."
    assert third.complete
    assert [mark for mark in END_MARKS if mark in third.body]


def test_a_backends_bytes_beyond_an_answer_reach_nobody(site: Stand) -> None:
    """What follows a good answer on its connection is taken for no answer to anybody."""
    good = b'{"message":{"content":"Hel"},"done":true}\n'
    foreign = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 17\r\n\r\n" + b'{"foreign":"yes"}'
    for packets in ([chunk(good), LAST_CHUNK + foreign], [chunk(good), LAST_CHUNK, foreign]):
        site.fakes[0].fault("/api/chat", Packets([("Content-Type", kind_of("/api/chat")), CHUNKED], packets))
        with site.client() as client:
            first = client.request("POST", "/api/chat", json=question("/api/chat"))
            assert site.fakes[0].requests_for("/api/chat")[-1].ended.wait(10)
            second = client.request("POST", "/api/generate", json=question("/api/generate", stream=False))
        assert b"foreign" not in first.body + second.body
        assert second.json()["done"] is True
