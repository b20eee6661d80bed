"""Where an HTTP body ends, however its bytes are cut by the network."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.errors import BadAnswer, Truncated
from proxy_app.upstream.framing import Chunked, Sized, UntilClose, chunk, framing_of

LAST = b"0\r\n\r\n"
payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def cuts(data: bytes, places: list[int]) -> list[bytes]:
    """Cut bytes as a network would."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if start != end]


def dechunk(data: bytes) -> bytes:
    """A plain decoder to compare with."""
    body = b""
    while True:
        line, _, data = data.partition(b"\r\n")
        size = int(line, 16)
        if size == 0:
            return body
        body, data = body + data[:size], data[size + 2 :]


@given(payloads, st.lists(st.integers(0, 5000), max_size=12))
def test_chunks_are_read_whatever_the_cuts(parts: list[bytes], places: list[int]) -> None:
    decoder = Chunked()
    read = b"".join(decoder.feed(piece) for piece in cuts(b"".join(map(chunk, parts)) + LAST, places))
    assert decoder.done
    assert read == b"".join(parts)
    decoder.end()


@given(payloads, st.lists(st.integers(0, 5000), max_size=12))
def test_chunks_come_out_as_chunks_whatever_the_cuts(parts: list[bytes], places: list[int]) -> None:
    decoder = Chunked()
    framed = [decoder.feed_chunk(piece) for piece in cuts(b"".join(map(chunk, parts)) + LAST, places)]
    assert decoder.done
    assert all(frame == b"" or frame.endswith(b"\r\n") for frame in framed)
    assert dechunk(b"".join(framed) + LAST) == b"".join(parts)


@given(payloads, st.integers(0, 5000))
def test_a_body_cut_anywhere_is_never_complete(parts: list[bytes], place: int) -> None:
    data = b"".join(map(chunk, parts)) + LAST
    decoder = Chunked()
    read = decoder.feed(data[: place % len(data)])
    assert not decoder.done
    assert b"".join(parts).startswith(read)
    with pytest.raises(Truncated):
        decoder.end()


def test_one_whole_chunk_passes_as_the_bytes_it_came_in() -> None:
    data = chunk(b'{"done":false}\n')
    assert Chunked().feed_chunk(data) is data


def test_extensions_capitals_and_trailers_are_read() -> None:
    decoder = Chunked()
    assert decoder.feed(b"A;x=y\r\n0123456789\r\n") == b"0123456789"
    assert decoder.feed(b"0\r\nX-Trailer: 1\r\nY: 2\r\n\r\n") == b""
    assert decoder.done


@pytest.mark.parametrize(
    "data",
    [
        b"zz\r\n",
        b"-1\r\n",
        b" 5\r\nhello\r\n",
        b"5\nhello\n",
        b"5\r\nhelloXX",
        b"0x5\r\nhello\r\n",
        b"fffffffffffffffff\r\n",
        b"\x00\xffgarbage\r\n",
        b"5" * 5000,
        b"5;" + b"x" * 5000,
        b"0\r\nX: " + b"y" * 20000,
        LAST + b"HTTP/1.1 200 OK\r\n",
    ],
)
def test_what_is_no_chunk_is_a_failure(data: bytes) -> None:
    decoder = Chunked()
    assert decoder.feed(data) in (b"", b"hello")
    assert isinstance(decoder.failure, Truncated)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_fail_as_a_cut_answer(data: bytes) -> None:
    decoder = Chunked()
    decoder.feed(data)
    if decoder.failure is None and not decoder.done:
        with pytest.raises(Truncated):
            decoder.end()


def test_good_chunks_before_garbage_in_one_read_are_not_lost() -> None:
    decoder = Chunked()
    assert decoder.feed(chunk(b"good") + b"\x00garbage\r\n") == b"good"
    assert isinstance(decoder.failure, Truncated)
    assert not decoder.done


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_a_sized_body_is_complete_at_its_length(body: bytes, places: list[int]) -> None:
    decoder = Sized(len(body))
    assert b"".join(decoder.feed(piece) for piece in cuts(body, places)) == body
    assert decoder.done
    decoder.end()


def test_a_sized_body_of_another_length_is_refused() -> None:
    long = Sized(3)
    long.feed(b"four")
    assert isinstance(long.failure, Truncated)
    short = Sized(3)
    assert short.feed(b"ab") == b"ab"
    with pytest.raises(Truncated):
        short.end()


NDJSON, SSE = "application/x-ndjson", "text/event-stream; charset=utf-8"
ENDINGS = [
    (NDJSON, b'{"model":"x","done":true,"done_reason":"stop"}\n'),
    (NDJSON, b'{"error":"boom"}\n'),
    (SSE, b"data: [DONE]\n\n"),
    (SSE, b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
    (SSE, b'event: response.completed\ndata: {"type":"response.completed"}\n\n'),
]


@pytest.mark.parametrize(("content_type", "ending"), ENDINGS)
def test_a_stream_until_close_is_whole_with_its_end_mark(content_type: str, ending: bytes) -> None:
    decoder = UntilClose(content_type)
    decoder.feed(b'{"model":"x","done":false}\n')
    decoder.feed(ending)
    decoder.end()
    assert decoder.done


@pytest.mark.parametrize(
    ("content_type", "tail"),
    [
        ("application/json", b""),
        ("application/json", b'{"a":1'),
        ("application/json", b'{"a":{"b":1}'),
    ],
)
def test_a_body_until_close_without_its_end_is_cut(content_type: str, tail: bytes) -> None:
    decoder = UntilClose(content_type)
    decoder.feed(tail)
    with pytest.raises(Truncated):
        decoder.end()
    assert not decoder.done


def test_a_json_value_until_close_is_whole_with_its_last_bracket() -> None:
    decoder = UntilClose("application/json; charset=utf-8")
    decoder.feed(b'{"object":"list","data":[{"embedding":[0.1,0.2]}]}\n')
    decoder.end()
    assert decoder.done


def test_the_headers_choose_the_framing() -> None:
    assert isinstance(framing_of(200, [("transfer-encoding", "Chunked"), ("content-length", "5")]), Chunked)
    assert isinstance(framing_of(200, [("Content-Length", "5")]), Sized)
    assert isinstance(framing_of(200, [("Content-Length", "5"), ("content-length", "5")]), Sized)
    assert isinstance(framing_of(200, []), UntilClose)
    assert framing_of(204, [("Content-Length", "5")]).done
    assert framing_of(200, [("Content-Length", "0")]).done


@pytest.mark.parametrize(
    "headers",
    [
        [("Content-Length", "5"), ("Content-Length", "6")],
        [("Content-Length", "5, 6")],
        [("Content-Length", "-5")],
        [("Content-Length", "+5")],
        [("Content-Length", "five")],
        [("Content-Length", "9" * 30)],
        [("Transfer-Encoding", "gzip, chunked")],
        [("Transfer-Encoding", "identity")],
        [("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")],
    ],
)
def test_headers_that_contradict_each_other_are_a_bad_answer(headers: list[tuple[str, str]]) -> None:
    with pytest.raises(BadAnswer):
        framing_of(200, headers)
