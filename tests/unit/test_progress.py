"""Progress of store operations: records are read, and those of several backends become one stream."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy_app.dialects.progress import LONGEST, Lines, Merge, Record, error_line, read_record, verdict
from proxy_app.errors import BadAnswer

DIGEST = "sha256:" + "ab" * 32


def layer(completed: int, total: int = 100, digest: str = DIGEST) -> Record:
    return Record(f"pulling {digest[7:19]}", digest, total, completed)


def said(lines: list[bytes]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines]


def done_of(lines: list[bytes]) -> list[int]:
    return [record.get("completed", 0) for record in said(lines)]


# --- records -------------------------------------------------------------------------------------


def test_a_record_is_read_and_what_is_left_out_is_zero() -> None:
    assert read_record(b'{"status":"pulling manifest"}\n') == Record("pulling manifest")
    full = b'{"status":"pulling ab","digest":"sha256:ab","total":7,"completed":3}'
    assert read_record(full) == Record("pulling ab", "sha256:ab", 7, 3)


def test_success_and_errors_are_told_from_progress() -> None:
    assert read_record(b'{"status":"success"}').is_success
    assert not read_record(b'{"status":"writing manifest"}').is_success
    assert read_record(b'{"error":"no room"}').error == "no room"
    assert read_record(b'{"status":"success"}').error is None


@pytest.mark.parametrize("line", [b"", b"garbage", b"[1]", b'"x"', b'{"total":"many"}', b'{"total":[1]}', b"7"])
def test_what_is_no_record_is_refused(line: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_record(line)


@given(st.lists(st.binary(max_size=20).filter(lambda text: b"\n" not in text)), st.data())
def test_lines_are_whole_wherever_the_pieces_are_cut(texts: list[bytes], data: st.DataObject) -> None:
    body = b"".join(text + b"\n" for text in texts)
    lines, found = Lines(), []
    while body:
        size = data.draw(st.integers(1, len(body)))
        found += lines.feed(body[:size])
        body = body[size:]
    assert found == [text + b"\n" for text in texts]
    assert lines.end() == []


def test_a_last_line_may_lack_its_end_and_none_may_be_endless() -> None:
    lines = Lines()
    assert lines.feed(b"one\ntwo") == [b"one\n"]
    assert lines.end() == [b"two"]
    with pytest.raises(BadAnswer):
        Lines().feed(b"x" * (LONGEST + 1))


# --- one stream of several -----------------------------------------------------------------------


def test_a_status_comes_once_all_have_reached_it() -> None:
    merge = Merge("ab")
    assert merge.note("a", Record("pulling manifest")) == []
    assert merge.note("b", Record("pulling manifest")) == [b'{"status":"pulling manifest"}\n']
    assert merge.note("a", Record("pulling manifest")) == []


def test_of_a_layer_the_slowest_is_told_and_only_what_changed() -> None:
    merge = Merge("ab")
    assert merge.note("a", layer(50)) == []
    assert done_of(merge.note("b", layer(10))) == [10]
    assert merge.note("a", layer(80)) == []
    assert done_of(merge.note("b", layer(60))) == [60]
    assert done_of(merge.note("b", layer(100))) == [80]
    assert done_of(merge.note("a", layer(100))) == [100]


def test_a_layer_line_has_the_form_of_ollamas() -> None:
    merge = Merge("a")
    line = merge.note("a", layer(40))
    assert line == [f'{{"status":"pulling abababababab","digest":"{DIGEST}","total":100,"completed":40}}\n'.encode()]
    assert said(merge.note("a", layer(0, digest="sha256:" + "cd" * 32)))[0].keys() == {"status", "digest", "total"}


def test_layers_are_counted_apart() -> None:
    merge, other = Merge("ab"), "sha256:" + "cd" * 32
    for part in "ab":
        merge.note(part, layer(100))
    merge.note("a", layer(5, digest=other))
    assert [record["digest"] for record in said(merge.note("b", layer(7, digest=other)))] == [other]


def test_who_is_done_or_has_failed_holds_nobody_up() -> None:
    merge = Merge("ab")
    merge.note("a", layer(70))
    merge.note("b", layer(20))
    merge.note("a", Record("verifying sha256 digest"))
    assert said(merge.leave("b")) == [
        {"status": "pulling abababababab", "digest": DIGEST, "total": 100, "completed": 70},
        {"status": "verifying sha256 digest"},
    ]
    assert done_of(merge.note("a", layer(90))) == [90]


def test_a_status_that_only_some_have_comes_when_the_others_are_done() -> None:
    merge = Merge("ab")
    assert merge.note("a", Record("removing unused layers")) == []
    assert said(merge.leave("b")) == [{"status": "removing unused layers"}]
    assert merge.leave("a") == []


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100)), max_size=40))
def test_no_line_claims_more_than_the_slowest_has(steps: list[tuple[str, int]]) -> None:
    merge = Merge("abc")
    now: dict[str, int] = {}
    for part, completed in steps:
        now[part] = completed
        for told in done_of(merge.note(part, layer(completed))):
            assert told == min(now.values())
            assert len(now) == 3


# --- what became of it ---------------------------------------------------------------------------


def test_the_verdict_names_who_failed_and_who_has_done_it() -> None:
    assert verdict("pull", [("b", "no room")], ["a"]) == "pull on b failed: no room; done on a"
    both = verdict("copy", [("a", "x"), ("b", "y")], [])
    assert both == "copy on a failed: x; copy on b failed: y"
    assert verdict("pull", [("c", "z")], ["a", "b"]) == "pull on c failed: z; done on a, b"


def test_an_error_line_is_a_record_of_its_own() -> None:
    assert error_line('no "room"') == b'{"error":"no \\"room\\""}\n'
