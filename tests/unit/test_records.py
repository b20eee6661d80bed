"""Which record of a stream came last, wherever the pieces were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.dialects.endings import is_ended
from proxy_app.upstream.framing import chunk
from proxy_app.upstream.records import LONGEST, LastRecord

NDJSON, SSE = "application/x-ndjson", "text/event-stream"
ENDS = {NDJSON: b"\n", SSE: b"\n\n"}
FINAL = {
    NDJSON: b'{"model":"tiny","response":"","done":true,"context":[%b]}',
    SSE: b'event: response.completed\ndata: {"type":"response.completed","text":"%b"}',
}
TOKEN = {NDJSON: b'{"response":"%b","done":false}', SSE: b'data: {"choices":[{"delta":{"content":"%b"}}]}'}
sizes = st.sampled_from([0, 1, 500, LONGEST // 2, LONGEST, 3 * LONGEST])


def stream(kind: str, tokens: list[int], final: int | None) -> bytes:
    """A stream of records with texts of these sizes; without a final one it was cut between two records."""
    records = [TOKEN[kind] % (b"7," * (size // 2)) for size in tokens]
    if final is not None:
        records.append(FINAL[kind] % (b"7," * (final // 2)))
    return b"".join(record + ENDS[kind] for record in records)


def pieces_of(data: bytes, places: list[int]) -> list[bytes]:
    marks = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [piece for start, end in pairwise(marks) if (piece := data[start:end])]


def is_whole(kind: str, pieces: list[bytes], *, in_chunks: bool) -> bool:
    record = LastRecord(ENDS[kind])
    for piece in pieces:
        if in_chunks:
            record.note_chunk(chunk(piece))
        else:
            record.note(piece)
    return is_ended(kind, record.seen)


@pytest.mark.parametrize("in_chunks", [False, True], ids=["pieces", "chunks"])
@pytest.mark.parametrize("kind", ENDS)
@given(st.lists(sizes, max_size=4), sizes | st.none(), st.lists(st.integers(0, 1 << 20), max_size=8))
def test_the_last_record_is_found_whatever_the_cuts(
    kind: str, in_chunks: bool, tokens: list[int], final: int | None, places: list[int]
) -> None:
    pieces = pieces_of(stream(kind, tokens, final), places)
    assert is_whole(kind, pieces, in_chunks=in_chunks) is (final is not None)


@pytest.mark.parametrize("in_chunks", [False, True], ids=["pieces", "chunks"])
@pytest.mark.parametrize("kind", ENDS)
def test_blocks_that_never_end_with_a_record_hide_no_end(kind: str, in_chunks: bool) -> None:
    """As a buffering proxy in front of the backend sends them."""
    data = stream(kind, [200] * 400, 100_000)
    pieces = [data[start : start + 4096] for start in range(0, len(data), 4096)]
    assert is_whole(kind, pieces, in_chunks=in_chunks)


@pytest.mark.parametrize("kind", ENDS)
def test_byte_by_byte_is_no_other_stream(kind: str) -> None:
    data = stream(kind, [500] * 3, 500)
    assert is_whole(kind, [bytes([byte]) for byte in data], in_chunks=False)
    assert not is_whole(kind, [bytes([byte]) for byte in stream(kind, [500] * 3, None)], in_chunks=False)


def test_what_is_remembered_is_bounded() -> None:
    record = LastRecord(b"\n")
    for _ in range(100):
        record.note(b"x" * 10_000)
    assert len(record.seen) <= LONGEST


def test_before_anything_came_nothing_is_seen() -> None:
    assert LastRecord(b"\n").seen == b""
