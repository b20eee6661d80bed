"""The judge of the traffic: it must know a whole answer, an honest end, and a lie."""

from __future__ import annotations

import json

import pytest

from tests.process.faults.talkers import Sent, judge

LINES = [b'{"response":"a","done":false}\n', b'{"response":"b","done":false}\n', b'{"response":"","done":true}\n']
EVENTS = [b'data: {"n":1}\n\n', b'data: {"n":2}\n\n', b"data: [DONE]\n\n"]
ERROR = b'{"error":"cut off"}\n'
EVENT_ERROR = b'event: error\ndata: {"error":{"message":"cut off"}}\n\n'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


def sent(records: list[bytes], *, whole: bool = True) -> Sent:
    """What a talker sent in chunks."""
    chunks = [b"%x\r\n%b\r\n" % (len(record), record) for record in records]
    made = Sent("a", 0.0)
    made.pieces = [(0.0, data) for data in (CHUNKED, *chunks, *([b"0\r\n\r\n"] if whole else []))]
    return made


OURS = sent(LINES)
CUT = sent(LINES[:2], whole=False)


def test_a_whole_answer_is_complete() -> None:
    assert judge(200, b"".join(LINES), "complete", [OURS]) == "complete"
    assert judge(200, b"".join(EVENTS), "complete", [sent(EVENTS)]) == "complete"


def test_an_answer_with_a_length_is_complete_at_its_length() -> None:
    body = json.dumps({"done": True}).encode()
    made = Sent("a", 0.0)
    made.pieces = [(0.0, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))]
    assert judge(200, body, "complete", [made]) == "complete"
    assert judge(200, body[:-1], "complete", [made]) == "wrong"
    assert judge(200, body[:-1], "cut", [made]) == "broken"


@pytest.mark.parametrize("tail", [b"", LINES[1][:9]])
def test_an_error_record_or_a_cut_tells_of_a_broken_answer(tail: bytes) -> None:
    good = LINES[0] + tail
    record = (b"\n" if tail else b"") + ERROR
    assert judge(200, good + record, "complete", [CUT]) == "broken"
    assert judge(200, good, "cut", [CUT]) == "broken"
    assert judge(200, EVENTS[0] + EVENT_ERROR, "complete", [sent(EVENTS[:1], whole=False)]) == "broken"


def test_a_part_that_ends_cleanly_is_a_lie() -> None:
    assert judge(200, b"".join(LINES[:2]), "complete", [CUT]) == "wrong"
    assert judge(200, b"".join(LINES[:2]), "complete", [OURS]) == "wrong"
    assert judge(200, b"".join(EVENTS[:2]), "complete", [sent(EVENTS)]) == "wrong"


def test_bytes_of_another_answer_are_a_lie_wherever_they_stand() -> None:
    other = b'{"response":"other","done":false}\n'
    assert judge(200, other + b"".join(LINES[1:]), "complete", [OURS]) == "wrong"
    assert judge(200, LINES[0] + other, "cut", [OURS]) == "wrong"
    assert judge(200, LINES[0] + other + ERROR, "complete", [OURS]) == "wrong"
    assert judge(200, b"".join(LINES) + other, "complete", [OURS]) == "wrong"
    assert judge(200, b"".join(LINES), "complete", []) == "wrong"


def test_a_request_that_is_sent_again_after_bytes_went_out_is_wrong() -> None:
    assert judge(200, b"".join(LINES[:1]), "cut", [CUT, sent([b"x"])]) == "wrong"
    assert judge(200, b"".join(LINES), "complete", [OURS, sent([b"x"])]) == "wrong"
    assert judge(200, b"".join(LINES), "complete", [sent([], whole=False), OURS]) == "complete"


def test_a_refusal_is_an_error_and_nothing_else() -> None:
    assert judge(503, ERROR, "complete", []) == "refused"
    assert judge(503, ERROR, "cut", []) == "wrong"
    assert judge(503, b"<html>", "complete", []) == "wrong"
