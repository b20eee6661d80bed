"""How each dialect says that something failed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proxy_app.dialects.errors import JSON, Dialect, error_body, error_record

GOLDEN = Path(__file__).parents[1] / "golden"
DIALECTS: tuple[Dialect, ...] = ("ollama", "openai", "responses", "anthropic")
NDJSON, SSE = "application/x-ndjson", "text/event-stream"


def recorded(name: str) -> dict[str, Any]:
    case: dict[str, Any] = json.loads((GOLDEN / f"{name}.json").read_text())
    return case


@pytest.mark.parametrize(
    ("dialect", "name", "message"),
    [
        ("ollama", "chat_404", "model 'nope' not found"),
        ("openai", "v1_chat_404", "model 'nope' not found"),
        ("openai", "v1_chat_empty_body_400", "EOF"),
        ("responses", "v1_responses_404", "model 'nope' not found"),
    ],
)
def test_an_error_is_ollamas_byte_for_byte(dialect: Dialect, name: str, message: str) -> None:
    case = recorded(name)
    assert error_body(dialect, case["status"], message) == case["response_body"].rstrip("\n").encode()


@pytest.mark.parametrize("name", ["messages_404", "messages_no_model_400"])
def test_an_anthropic_error_has_ollamas_keys_in_its_order(name: str) -> None:
    case = recorded(name)
    theirs = json.loads(case["response_body"])
    ours = json.loads(error_body("anthropic", case["status"], theirs["error"]["message"], "ab" * 16))
    assert list(ours) == list(theirs)
    assert ours["error"] == theirs["error"]
    assert ours["request_id"] == "req_" + "ab" * 12


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (413, "request_too_large"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
    ],
)
def test_an_anthropic_error_has_the_type_of_its_status(status: int, kind: str) -> None:
    assert json.loads(error_body("anthropic", status, "x"))["error"]["type"] == kind


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (429, "rate_limit_error"),
    ],
)
def test_an_openai_error_has_the_type_of_its_status(status: int, kind: str) -> None:
    assert json.loads(error_body("openai", status, "x"))["error"]["type"] == kind


@pytest.mark.parametrize("status", [413, 500, 502, 503])
def test_other_openai_errors_are_api_errors(status: int) -> None:
    assert json.loads(error_body("openai", status, "x"))["error"]["type"] == "api_error"


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("message", ['a "quote"', "line\nbreak", "é\u2028", "\ud800"])
def test_any_message_is_one_line_of_json(dialect: Dialect, message: str) -> None:
    body = error_body(dialect, 500, message)
    assert b"\n" not in body
    json.loads(body)


# --- inside a stream -----------------------------------------------------------------------------


@pytest.mark.parametrize("tail", [b"\n", b"}\n", b"\n\n"])
def test_an_ndjson_record_follows_a_whole_line(tail: bytes) -> None:
    assert error_record("ollama", NDJSON, "cut", tail) == b'{"error":"cut"}\n'


@pytest.mark.parametrize("tail", [b'"m', b"e", b""])
def test_a_line_that_was_cut_is_ended_first(tail: bytes) -> None:
    assert error_record("ollama", NDJSON, "cut", tail) == b'\n{"error":"cut"}\n'


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("tail", [b"\n\n", b"}\n", b'"m', b""])
def test_an_event_stands_alone_whatever_was_cut(dialect: Dialect, tail: bytes) -> None:
    record = error_record(dialect, f"{SSE}; charset=utf-8", "cut", tail)
    assert record is not None
    assert record.endswith(b"\n\n")
    assert record.startswith(b"\n\n") == (tail != b"\n\n")
    *events, data = record.strip().splitlines()
    assert events == ([] if dialect == "openai" else [b"event: error"])
    assert json.loads(data.removeprefix(b"data: "))["error"]


def test_a_responses_event_has_the_fields_that_its_clients_read() -> None:
    record = error_record("responses", SSE, "cut")
    assert record is not None
    data = json.loads(record.splitlines()[1].removeprefix(b"data: "))
    assert (data["type"], data["message"], data["param"]) == ("error", "cut", None)


@pytest.mark.parametrize("content_type", ["", JSON, "application/json", "text/plain", "application/octet-stream"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_other_framings_have_no_room_for_an_error(dialect: Dialect, content_type: str) -> None:
    assert error_record(dialect, content_type, "cut") is None
