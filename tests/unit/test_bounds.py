"""What clients and backends may send is bounded before anything is made of it."""

from __future__ import annotations

import json

import pytest

from proxy_app.dialects.body import asked
from proxy_app.domain import LONGEST_NAME, parse_name
from proxy_app.errors import BadRequest, InvalidModelName, Truncated
from proxy_app.upstream.framing import Chunked, Sized


@pytest.mark.parametrize("text", ["A" * 9_000_000 + "://ok", "\ud800://ok", "a b://ok", "x" * (LONGEST_NAME + 1)])
def test_an_endless_or_odd_name_is_no_name(text: str) -> None:
    with pytest.raises(InvalidModelName):
        parse_name(text)


def model_of(body: bytes, content_type: str = "", query: str = "") -> str:
    return asked(body, content_type, query).model


def test_a_scheme_is_read_as_ollama_reads_it() -> None:
    assert parse_name("https://registry.ollama.ai/library/llama3").canonical == parse_name("llama3").canonical


def test_a_body_of_countless_keys_is_refused() -> None:
    body = json.dumps({f"k{n}": 0 for n in range(10_000)} | {"model": "x"}).encode()
    with pytest.raises(BadRequest, match="too many keys"):
        model_of(body)


def test_a_form_of_countless_fields_is_refused() -> None:
    with pytest.raises(BadRequest, match="too many fields"):
        model_of(b"a=1&" * 10_000, "application/x-www-form-urlencoded")


def test_a_connection_with_bytes_behind_its_body_is_broken() -> None:
    framing = Chunked()
    assert framing.feed(b"2\r\nok\r\n0\r\n\r\nHTTP/1.1 200") == b"ok"
    assert isinstance(framing.failure, Truncated)


def test_what_is_longer_than_its_length_is_broken() -> None:
    framing = Sized(2)
    assert framing.feed(b"okay") == b""
    assert isinstance(framing.failure, Truncated)
