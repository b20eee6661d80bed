"""How a stream shows that it is whole, what may begin an answer, and what a heartbeat is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.dialects.endings import heartbeat, is_ended, is_error, is_possible, is_stream, record_end

GOLDEN = Path(__file__).parents[1] / "golden"
NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json; charset=utf-8"
# Recorded streams of Ollama that ended well, and the types they came as.
WHOLE = {
    "chat_stream": NDJSON,
    "generate_stream": NDJSON,
    "v1_chat_stream_usage": SSE,
    "v1_completions_stream_usage": SSE,
    "v1_responses_stream": SSE,
    "messages_stream": SSE,
}
# Recorded streams in which Ollama swallowed an error.
SWALLOWED = (
    "messages_stream_error_midstream",
    "v1_chat_stream_error_midstream",
    "v1_completions_stream_error_midstream",
    "v1_responses_stream_error_midstream",
)


def recorded(name: str) -> bytes:
    body = json.loads((GOLDEN / f"{name}.json").read_text())["response_body"]
    return str(body).encode()


def last_record(kind: str, body: bytes) -> bytes:
    end = record_end(kind)
    return body.removesuffix(end).rpartition(end)[2] + end


@pytest.mark.parametrize("name", WHOLE)
def test_what_ollama_ended_well_is_whole(name: str) -> None:
    kind, body = WHOLE[name], recorded(name)
    assert is_ended(kind, last_record(kind, body))
    # All of it in one packet is seen as one record.
    assert is_ended(kind, body)


@pytest.mark.parametrize("name", SWALLOWED)
def test_what_ollama_broke_off_without_a_word_is_not(name: str) -> None:
    body = recorded(name)
    assert not is_ended(SSE, last_record(SSE, body))
    assert not is_ended(SSE, body)


@pytest.mark.parametrize("name", ["chat_error_midstream", "generate_error_midstream"])
def test_ollamas_own_error_record_is_an_end(name: str) -> None:
    assert is_ended(NDJSON, last_record(NDJSON, recorded(name)))


@pytest.mark.parametrize("name", WHOLE)
def test_without_its_last_record_no_stream_is_whole(name: str) -> None:
    kind, body = WHOLE[name], recorded(name)
    assert not is_ended(kind, body.removesuffix(last_record(kind, body)))


@given(st.text(), st.sampled_from(["chat", "generate", "openai", "responses", "anthropic"]))
def test_no_text_of_a_model_is_an_end(text: str, dialect: str) -> None:
    kind, record = token(dialect, text)
    assert not is_ended(kind, record)


ENDS_IN_A_TEXT = [
    '"done":true',
    '\n"done":true',
    '{"done":true}',
    '\n{"error":"x"}\n',
    "\ndata: [DONE]\n\n",
    '\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
    '\ndata: {"type":"response.completed"}\n\n',
    '"status":"success"',
]


@pytest.mark.parametrize("text", ENDS_IN_A_TEXT)
@pytest.mark.parametrize("dialect", ["chat", "generate", "openai", "responses", "anthropic"])
def test_a_text_that_quotes_an_end_is_no_end(dialect: str, text: str) -> None:
    kind, record = token(dialect, text)
    assert not is_ended(kind, record)


def token(dialect: str, text: str) -> tuple[str, bytes]:
    """A record with this text, as (content type, bytes)."""
    if dialect in ("chat", "generate"):
        part = {"message": {"role": "assistant", "content": text}} if dialect == "chat" else {"response": text}
        return NDJSON, line({"model": "tiny", **part, "done": False})
    if dialect == "openai":
        return SSE, b"data: " + line({"choices": [{"delta": {"content": text}}]}) + b"\n"
    event = "response.output_text.delta" if dialect == "responses" else "content_block_delta"
    return SSE, f"event: {event}\n".encode() + b"data: " + line({"type": event, "delta": text}) + b"\n"


def line(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace") + b"\n"


@pytest.mark.parametrize("arguments", [{"done": True}, {"status": "success"}, {"task": {"done": True}}])
def test_an_argument_of_a_tool_is_no_end(arguments: dict[str, object]) -> None:
    """On the native route the arguments of a call are JSON, not text: no quote in them is escaped."""
    call = {"function": {"name": "finish", "arguments": arguments}}
    record = line({"model": "tiny", "message": {"role": "assistant", "tool_calls": [call]}, "done": False})
    assert not is_ended(NDJSON, record)


@pytest.mark.parametrize(
    ("kind", "last"),
    [
        (NDJSON, b'{"model":"tiny","response":"","done":tru'),
        (NDJSON, b'{"model":"tiny","response":"","done":false}'),
        (SSE, b"data: [DON"),
        (SSE, b"event: message_st"),
        (SSE, b"event: message_stopped\n\n"),
    ],
)
def test_half_a_mark_is_no_end(kind: str, last: bytes) -> None:
    assert not is_ended(kind, last)


@pytest.mark.parametrize("last", [b'{"status":"success"}\n', b'{"done" : true}\n', b'{"error":"boom"}\n'])
def test_other_ends_of_lines(last: bytes) -> None:
    assert is_ended(NDJSON, last)


@pytest.mark.parametrize("kind", ["response.incomplete", "response.failed", "error"])
def test_other_ends_of_events(kind: str) -> None:
    value = json.dumps({"type": kind}, separators=(",", ":"))
    assert is_ended(SSE, f"event: {kind}\ndata: {value}\n\n".encode())
    assert is_ended(SSE, f"data: {value}\n\n".encode())


def test_only_streams_have_an_end_mark() -> None:
    assert is_ended(JSON, b"")
    assert not is_ended(NDJSON, b"")
    assert not is_ended(SSE, b"")
    assert [is_stream(kind) for kind in (NDJSON, f"{SSE}; charset=utf-8", JSON, "")] == [True, True, False, False]


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (NDJSON, b"<html><body>Sign in</body></html>"),
        (NDJSON, b"Bad Gateway\n"),
        (SSE, b"<!doctype html>\n\n"),
        (SSE, b'{"detail":"no stream"}\n\n'),
        (JSON, b"<html></html>"),
        (JSON, b""),
        (JSON, b'{"embeddings":[[0.1,'),
        (JSON, b'"a text"'),
        ("text/html", b'{"done":true}'),
        ("text/html; charset=utf-8", b"<html></html>"),
    ],
)
def test_garbage_is_no_answer(kind: str, first: bytes) -> None:
    assert not is_possible(kind, first)


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        (NDJSON, b' \n{"model":"tiny"}\n'),
        (SSE, b": a comment\n\n"),
        (SSE, b"\ndata: {}\n\n"),
        (SSE, b"id: 7\ndata: {}\n\n"),
        (JSON, b' {"embeddings":[]} \n'),
        (JSON, b"[1]"),
        (JSON, b"null"),
        ("text/plain", b"Hello"),
        ("", b"\x1f\x8b"),
    ],
)
def test_what_ollama_says_is_an_answer(kind: str, first: bytes) -> None:
    assert is_possible(kind, first)


def test_errors_are_told_by_their_beginning() -> None:
    assert is_error(b'{"error":"boom"}')
    assert is_error(b'\n data: {"error":{"message":"boom"}}\n\n')
    assert is_error(b"event: error\ndata: {}\n\n")
    assert not is_error(b'{"response":"{\\"error\\":1}"}')
    assert not is_error(b'data: {"choices":[{"delta":{"content":"event: error"}}]}\n\n')


def test_a_heartbeat_is_what_a_client_skips() -> None:
    assert json.loads(heartbeat(JSON) * 3 + b'{"a":1}') == {"a": 1}
    assert heartbeat(NDJSON).strip() == b""
    assert b"\n" not in heartbeat(NDJSON), "a blank line breaks clients that read line by line"
    assert heartbeat(SSE).startswith(b":")
    assert heartbeat(SSE).endswith(b"\n\n")
