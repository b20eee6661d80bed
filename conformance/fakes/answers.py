"""What a fake answers, as values: a status, headers, and either a body or a stream of records."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from http import HTTPStatus
from typing import Any

JSON_UTF8 = "application/json; charset=utf-8"
JSON_PLAIN = "application/json"
NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
# Go's response buffer in bytes: a larger body goes out chunked instead of with a Content-Length.
GO_BUFFER = 2048
BUSY = "server busy, please try again.  maximum pending requests exceeded"

Header = tuple[str, str]


@dataclass(frozen=True)
class Stream:
    """A streamed answer in records; one record is one chunk and one send.

    `broken` is how Ollama's route looks to a client when the runner dies after some tokens.
    """

    tokens: Iterable[bytes]
    prologue: tuple[bytes, ...] = ()
    epilogue: Iterable[bytes] = ()
    broken: tuple[bytes, ...] = ()
    delay_s: float = 0.0
    first_delay_s: float = 0.0


@dataclass(frozen=True)
class Answer:
    """A complete plan of one response; faults bend it, the wire plays it.

    Args:
        chunked: send the body in one chunk instead of with a Content-Length.
        delay_s: silence before it, while the runner makes a whole answer.
    """

    status: int = 200
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    stream: Stream | None = None
    chunked: bool = False
    delay_s: float = 0.0

    @property
    def streamed(self) -> bool:
        return self.stream is not None or self.chunked or len(self.body) > GO_BUFFER

    def flat(self) -> bytes:
        """The whole body, a stream's records joined without pacing."""
        if self.stream is None:
            return self.body
        stream = self.stream
        return b"".join((*stream.prologue, *stream.tokens, *stream.epilogue))


def go_json(value: Any) -> bytes:
    """Encode as Go does: no spaces, UTF-8, and <, >, & escaped."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&":
        if char in text:
            text = text.replace(char, f"\\u{ord(char):04x}")
    # A lone surrogate cannot be encoded; Go writes the replacement character too.
    return text.encode("utf-8", "replace")


def json_answer(value: Any, status: int = 200, content_type: str = JSON_UTF8) -> Answer:
    return Answer(status, (("Content-Type", content_type),), go_json(value))


def text_answer(text: str, status: int = 200, *extra: Header) -> Answer:
    return Answer(status, (*extra, ("Content-Type", "text/plain")), text.encode())


def redirect_answer(status: int, location: str) -> Answer:
    reason = HTTPStatus(status).phrase
    headers = (("Content-Type", "text/html; charset=utf-8"), ("Location", location))
    return Answer(status, headers, f'<a href="{location}">{reason}</a>.\n\n'.encode())


def dialect_of(path: str) -> str:
    """Tell a path's error dialect: ollama, openai or anthropic."""
    if path.startswith("/v1/messages"):
        return "anthropic"
    return "openai" if path.startswith("/v1/") else "ollama"


def openai_error(status: int, text: str) -> dict[str, Any]:
    kind = {400: "invalid_request_error", 404: "not_found_error"}.get(status, "api_error")
    return {"error": {"message": text, "type": kind, "param": None, "code": None}}


def anthropic_error(status: int, text: str) -> dict[str, Any]:
    kinds = {
        400: "invalid_request_error",
        404: "not_found_error",
        503: "overloaded_error",
    }
    error = {"type": kinds.get(status, "api_error"), "message": text}
    return {"type": "error", "error": error, "request_id": "req_" + secrets.token_hex(12)}


def error_value(path: str, status: int, text: str) -> dict[str, Any]:
    dialect = dialect_of(path)
    if dialect == "ollama":
        return {"error": text}
    return (openai_error if dialect == "openai" else anthropic_error)(status, text)


def error_answer(path: str, status: int, text: str) -> Answer:
    """An error of the handler: on /v1 Ollama's writer re-encodes it, which leaves a line end."""
    value = error_value(path, status, text)
    if dialect_of(path) == "ollama":
        return json_answer(value, status)
    return Answer(status, (("Content-Type", JSON_PLAIN),), go_json(value) + b"\n")


def middleware_error(path: str, status: int, text: str) -> Answer:
    """An error that Ollama's /v1 middleware raises before the handler: other type, no line end."""
    return json_answer(error_value(path, status, text), status)


def runner_error(path: str, text: str) -> Answer:
    """A failure before the first token of a stream: 500, plain JSON type, chunked."""
    ending = b"" if dialect_of(path) == "ollama" else b"\n"
    body = go_json(error_value(path, 500, text)) + ending
    return Answer(500, (("Content-Type", JSON_PLAIN),), body, chunked=True)


@lru_cache(maxsize=4)
def second_text(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))


def now_text() -> str:
    """The present as Go's RFC3339Nano in UTC."""
    second, nanos = divmod(time.time_ns(), 1_000_000_000)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{second_text(second)}{fraction}Z"
