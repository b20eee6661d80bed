"""How each dialect says that something failed: as a whole answer, and as a record inside a stream."""

from __future__ import annotations

import json
from typing import Any, Literal

Dialect = Literal["ollama", "openai", "anthropic", "responses"]
"""`responses` is OpenAI's, with the events of its Responses API inside a stream."""

JSON = "application/json; charset=utf-8"

# openai/openai.go:225-237 (v0.33.0-rc2); 401, 403 and 429 as OpenAI itself calls them
_OPENAI_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}
# anthropic/anthropic.go:38-62 (v0.33.0-rc2), 403 and 413 from Anthropic's own list
_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def error_body(dialect: Dialect, status: int, message: str, request_id: str = "") -> bytes:
    """An error answer's body in the form that the dialect's clients read."""
    return compact(_envelope(dialect, status, message, request_id))


def error_record(dialect: Dialect, content_type: str, message: str, sent_tail: bytes = b"\n\n") -> bytes | None:
    """What ends a stream that broke, in its own framing; None where the framing has no room for it.

    Args:
        content_type: of the answer that broke.
        sent_tail: the last bytes that went out; a record that was cut is closed first.
    """
    if content_type.startswith("application/x-ndjson"):
        return (b"" if sent_tail.endswith(b"\n") else b"\n") + compact({"error": message}) + b"\n"
    if content_type.startswith("text/event-stream"):
        return (b"" if sent_tail.endswith(b"\n\n") else b"\n\n") + _event(dialect, message)
    return None


def message_of(body: bytes) -> str:
    """An error answer's message, without what differs between two backends that mean the same."""
    try:
        error = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return body.decode("utf-8", "replace")
    return str(error.get("message") if isinstance(error, dict) else error)


def _envelope(dialect: Dialect, status: int, message: str, request_id: str) -> dict[str, Any]:
    if dialect == "ollama":
        # Of a 401 Ollama's own command reads this field alone (api/types.go:43-54).
        return {"error": message, "status": message} if status == 401 else {"error": message}
    if dialect == "anthropic":
        error = {"type": _ANTHROPIC_TYPES.get(status, "api_error"), "message": message}
        return {"type": "error", "error": error, "request_id": f"req_{request_id[:24]}"}
    kind = _OPENAI_TYPES.get(status, "api_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def _event(dialect: Dialect, message: str) -> bytes:
    envelope = _envelope(dialect, 502, message, "")
    if dialect == "openai":
        return b"data: %b\n\n" % compact(envelope)
    if dialect == "responses":
        envelope |= {"type": "error", "code": "api_error", "message": message, "param": None}
    envelope.pop("request_id", None)
    return b"event: error\ndata: %b\n\n" % compact(envelope)


def compact(value: object) -> bytes:
    """JSON without blanks, as Go writes it."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
