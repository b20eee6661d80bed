"""What an answer has to be. Every answer of every bench passes one of these, or the run fails."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import accumulate
from typing import Any

from bench.wire import BadAnswer, Chunks

Check = Callable[[bytes], None]


def chat(expected: Any) -> Check:
    """A whole chat whose text is `expected`."""

    def check(body: bytes) -> None:
        answer = json.loads(body)
        if answer.get("done") is not True or answer["message"]["content"] != expected:
            raise BadAnswer(f"not the chat that was asked for: {body[:200]!r}")

    return check


def document(expected: Any) -> Check:
    """The very JSON document `expected`, however it is written."""

    def check(body: bytes) -> None:
        if json.loads(body) != expected:
            raise BadAnswer(f"another document: {body[:200]!r}")

    return check


def listing(expected: Any) -> Check:
    """A listing of all `required` models, and of no others but the `allowed` ones."""

    def check(body: bytes) -> None:
        names = {model["name"] for model in json.loads(body)["models"]}
        if not set(expected["required"]) <= names <= {*expected["required"], *expected["allowed"]}:
            raise BadAnswer(f"another listing: {sorted(names)}")

    return check


def page(expected: Any) -> Check:
    """A whole page of ours."""

    def check(body: bytes) -> None:
        if not body.lstrip().lower().startswith(b"<!doctype html>") or not body.rstrip().endswith(b"</html>"):
            raise BadAnswer(f"not a whole page: {body[:100]!r} ... {body[-100:]!r}")

    return check


def anything(expected: Any) -> Check:
    """Any JSON."""

    def check(body: bytes) -> None:
        json.loads(body)

    return check


CHECKS: dict[str, Callable[[Any], Check]] = {
    "chat": chat,
    "document": document,
    "listing": listing,
    "page": page,
    "json": anything,
}


class Remembering:
    """A check that parses each different body once; the bytes of all others are compared with those."""

    def __init__(self, check: Check) -> None:
        self._check = check
        self._good: set[bytes] = set()

    def __call__(self, body: bytes) -> None:
        if body not in self._good:
            try:
                self._check(body)
            except (ValueError, KeyError, TypeError, AttributeError) as exc:
                raise BadAnswer(f"{exc!r} in {body[:200]!r}") from exc
            self._good.add(body)


def stream(raw: bytes, tokens: int) -> list[tuple[int, int]]:
    """Check that a streamed chat is whole: all tokens in order, then `done`, and nothing else.

    Args:
        raw: the chunked body with its end.

    Returns: of each token when it left the backend, in ns, and how much of `raw` it took to know it.
    """
    chunks = Chunks(raw)
    lines = chunks.body.splitlines(keepends=True)
    try:
        *records, last = map(json.loads, lines)
        if len(records) != tokens or last["done"] is not True or last["eval_count"] != tokens:
            raise BadAnswer(f"{len(lines)} records instead of {tokens} and an end; the last is {lines[-1]!r}")
        sent = [_sent_ns(record, number) for number, record in enumerate(records)]
    except (ValueError, KeyError, TypeError) as exc:
        raise BadAnswer(f"{exc!r} in {chunks.body[-300:]!r}") from exc
    ends = accumulate(len(line) for line in lines[:-1])
    return [(sent_ns, chunks.raw_end(end)) for sent_ns, end in zip(sent, ends, strict=True)]


def _sent_ns(record: Any, number: int) -> int:
    """When the backend sent this token, which has to be the one with this number."""
    index, _, sent_ns = record["message"]["content"].partition(":")
    if record["done"] or int(index) != number:
        raise BadAnswer(f"token {number} is {record!r}")
    return int(sent_ns)
