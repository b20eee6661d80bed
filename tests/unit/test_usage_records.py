"""What the end of an answer says of its cost, wherever the network cut it; and what the client did not ask for."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxy_app.dialects.usage import Spent, WithoutUsage, spent, with_usage
from proxy_app.upstream.framing import chunk
from proxy_app.upstream.records import LastRecord

NDJSON, SSE, JSON = "application/x-ndjson", "text/event-stream", "application/json; charset=utf-8"
METRICS = {
    "total_duration": 729505508,
    "load_duration": 523753703,
    "prompt_eval_count": 7,
    "prompt_eval_duration": 12000000,
    "eval_count": 4,
    "eval_duration": 40000000,
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 4, "total_tokens": 11}
NATIVE = Spent(7, 4, 52, 523, out_ms=40)
OTHER = Spent(7, 4, is_exact=False)


def sse(*events: Any) -> bytes:
    return b"".join(
        b"data: " + (e if isinstance(e, bytes) else json.dumps(e, separators=(",", ":")).encode()) + b"\n\n"
        for e in events
    )


def named(*events: dict[str, Any]) -> bytes:
    return b"".join(f"event: {event['type']}\n".encode() + sse(event) for event in events)


def openai(*last: Any) -> bytes:
    tokens = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in "abcd"]
    return sse(*tokens, *last, b"[DONE]")


STREAMS: dict[str, tuple[str, bytes, Spent]] = {
    "native": (
        NDJSON,
        b'{"response":"a","done":false}\n' * 4 + json.dumps({"done": True, **METRICS}).encode() + b"\n",
        NATIVE,
    ),
    "openai": (SSE, openai({"choices": [], "usage": USAGE}), OTHER),
    "anthropic": (
        SSE,
        named(
            {"type": "message_start", "message": {"usage": {"input_tokens": 1, "output_tokens": 0}}},
            *[{"type": "content_block_delta", "delta": {"text": text}} for text in "abcd"],
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": {}, "usage": {"input_tokens": 7, "output_tokens": 4}},
            {"type": "message_stop"},
        ),
        OTHER,
    ),
    "responses": (
        SSE,
        named(
            *[{"type": "response.output_text.delta", "delta": text} for text in "abcd"],
            {"type": "response.completed", "response": {"usage": {"input_tokens": 7, "output_tokens": 4}}},
        ),
        OTHER,
    ),
}
END = {NDJSON: b"\n", SSE: b"\n\n"}


def pieces_of(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [piece for start, end in pairwise(marks) if (piece := data[start:end])]


def noted(kind: str, pieces: list[bytes], *, in_chunks: bool) -> LastRecord:
    record = LastRecord(END[kind])
    for piece in pieces:
        record.note_chunk(chunk(piece)) if in_chunks else record.note(piece)
    return record


cuts = st.lists(st.integers(0, 2000), max_size=12)


@pytest.mark.parametrize("name", STREAMS)
@given(places=cuts, in_chunks=st.booleans())
@example(places=[], in_chunks=True)
@example(places=list(range(2000)), in_chunks=False)
def test_the_cost_is_found_wherever_the_pieces_were_cut(name: str, places: list[int], in_chunks: bool) -> None:
    kind, data, cost = STREAMS[name]
    assert spent(kind, noted(kind, pieces_of(data, places), in_chunks=in_chunks).last_two) == cost


def test_the_last_two_records_are_kept_where_one_piece_ends_one_and_brings_two_more() -> None:
    kind, data, cost = STREAMS["anthropic"]
    place = data.index(b'"d"}') + 1
    assert spent(kind, noted(kind, [data[:place], data[place:]], in_chunks=False).last_two) == cost


@pytest.mark.parametrize("kind", [JSON, "application/json"])
def test_a_whole_answer_says_its_cost(kind: str) -> None:
    assert spent(kind, json.dumps({"done": True, **METRICS}).encode()) == NATIVE
    assert spent(kind, json.dumps({"choices": [], "usage": USAGE}).encode()) == OTHER
    assert spent(kind, json.dumps({"usage": {"input_tokens": 7, "output_tokens": 4}}).encode()) == OTHER


def test_embeddings_say_how_long_all_of_it_took() -> None:
    said = {"embeddings": [[1.0]], "total_duration": 6_000_000, "load_duration": 2_000_000, "prompt_eval_count": 3}
    assert spent(JSON, json.dumps(said).encode()) == Spent(3, 0, 4, 2)


@pytest.mark.parametrize(
    "last",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b'"x"',
        b'{"usage":7}',
        b'{"usage":{"prompt_tokens":"7"}}',
        b'{"eval_count":"x"}',
        b'{"usage":{"prompt_tokens":1e400}}',
        b'{"embedding":[0.1]}',
        b"[" * 5000,
    ],
)
def test_what_says_nothing_of_its_cost_says_nothing(last: bytes) -> None:
    for kind, text in ((JSON, last), (NDJSON, last + b"\n"), (SSE, b"data: " + last + b"\n\n"), ("text/plain", last)):
        assert spent(kind, text) is None


def test_numbers_below_zero_cost_nothing_less_than_nothing() -> None:
    """A backend that lies must not give a key tokens back."""
    for said in ({**METRICS, "eval_count": -5, "prompt_eval_count": -7}, {"usage": {"prompt_tokens": -7}}):
        found = spent(JSON, json.dumps(said).encode()) or Spent()
        assert min(found.tokens_in, found.tokens_out, found.gpu_ms, found.load_ms) >= 0


# -- asking for the usage, and taking it out again ------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (b'{"model":"tiny"}', {}),
        (b'{"stream_options":null}', {}),
        (b'{"stream_options":{}}', {}),
        (b'{"stream_options":{"include_usage":false,"x":1}}', {"x": 1}),
        (b'{"Stream_Options":{"x":1}}', {"x": 1}),
    ],
)
def test_the_usage_is_asked_for(body: bytes, more: dict[str, Any]) -> None:
    asking = with_usage(body)
    assert asking is not None
    found = [value for key, value in json.loads(asking).items() if key.lower() == "stream_options"]
    assert found == [{**more, "include_usage": True}]


@pytest.mark.parametrize(
    "body",
    [
        b'{"stream_options":{"include_usage":true}}',
        b'{"STREAM_OPTIONS":{"include_usage":true}}',
        b'{"stream_options":7}',
        b'{"stream_options":[]}',
        b"[]",
        b"{",
        b'{"a":1} x',
        b'{"x":"' + b"a" * (2 << 20) + b'"}',
    ],
)
def test_a_body_that_asks_already_or_cannot_be_read_is_left_alone(body: bytes) -> None:
    assert with_usage(body) is None


RECORD = sse({"id": "x", "choices": [], "usage": USAGE})


@given(places=cuts)
def test_the_usage_is_taken_out_wherever_the_pieces_were_cut(places: list[int]) -> None:
    data = openai().replace(b"data: [DONE]", RECORD + b"data: [DONE]")
    change = WithoutUsage()
    assert b"".join(change(piece) for piece in pieces_of(data, places)) == openai()


@given(places=cuts)
def test_what_looks_like_it_in_an_answer_stays(places: list[int]) -> None:
    data = sse(
        {"choices": [{"delta": {"content": '"choices":[] and "usage":{} \n\n data: {"choices":[],"usage":{}}'}}]},
        b"[DONE]",
    )
    change = WithoutUsage()
    assert b"".join(change(piece) for piece in pieces_of(data, places)) == data


def test_each_whole_record_goes_out_at_once() -> None:
    change = WithoutUsage()
    for record in (sse({"choices": [{"delta": {"content": "a"}}]}), sse(b"[DONE]")):
        assert change(record) is record


def test_records_that_end_in_carriage_returns_are_not_held_back() -> None:
    change = WithoutUsage()
    record = b'data: {"choices":[{"delta":{"content":"a"}}]}\r\n\r\n'
    assert b"".join(change(record) for _ in range(3)) == record * 3
