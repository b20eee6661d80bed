"""How a stream shows that it is whole, and what may be sent while there is nothing to say.

Source: Ollama server/routes.go and middleware/*.go (v0.33.0-rc2): on `/v1` it swallows an error in mid-stream and ends
the body as if nothing had happened; a stream that ended well has a last record that says so.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

NDJSON = "application/x-ndjson"
SSE = "text/event-stream"
STREAMS = (NDJSON, SSE)


class _Line(msgspec.Struct):
    """What may say at the top level of a record that it is the last one: chats and the like, errors, pulls."""

    done: Any = False
    error: Any = None
    status: Any = ""


_line = msgspec.json.Decoder(_Line).decode
# For a record of which the middle is not known.
_LAST_LINE = re.compile(rb'"done"\s*:\s*true|"status"\s*:\s*"success"')
# A quote inside a text is escaped, and so is a line's end: what a model says can never look like this.
_LAST_EVENT = re.compile(
    rb"^data:\s*\[DONE\]"
    rb"|^event:\s*(?:message_stop|error|response\.(?:completed|incomplete|failed))\s*$"
    rb'|^data:\s*\{\s*"(?:error"|type"\s*:\s*"(?:message_stop|error|response\.(?:completed|incomplete|failed))")',
    re.MULTILINE,
)


def is_stream(content_type: str) -> bool:
    return content_type.startswith(STREAMS)


def record_end(content_type: str) -> bytes:
    """What ends a record of a stream."""
    return b"\n\n" if content_type.startswith(SSE) else b"\n"


def is_ended(content_type: str, last: bytes, *, is_open: bool = False) -> bool:
    """Is a stream whose body ended cleanly whole?

    Args:
        last: its last record, without its middle where it is long; chunk sizes may stand in it.
        is_open: the end of that record has not come. A line may do without; a client drops an event without it.
    """
    if content_type.startswith(NDJSON):
        return _is_last_line(last.strip().rpartition(b"\n")[2], is_open=is_open)
    if content_type.startswith(SSE):
        return not is_open and _LAST_EVENT.search(last) is not None
    return True


def _is_last_line(line: bytes, *, is_open: bool) -> bool:
    try:
        said = _line(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return not is_open and _LAST_LINE.search(line) is not None
    return said.done is True or said.error is not None or said.status == "success"


def is_possible(content_type: str, first: bytes) -> bool:
    """May an answer of this type begin with this? Garbage does not, in whatever framing it comes."""
    start = first.lstrip(b" \t\r\n")
    if content_type.startswith(NDJSON):
        return not start or start.startswith(b"{")
    if content_type.startswith(SSE):
        return not start or start.startswith((b"data:", b"event:", b"id:", b"retry:", b":"))
    if content_type.startswith("application/json"):
        return start.startswith((b"{", b"[", b"null")) and _is_json(first)
    if not content_type:
        # Compressed: only its framing tells whether it is whole.
        return True
    # A login page, or a file server: nothing that Ollama says.
    return not content_type.startswith("text/html")


def _is_json(body: bytes) -> bool:
    try:
        msgspec.json.decode(body, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def is_error(first: bytes) -> bool:
    """Does an answer with a good status begin with an error, in the form of any dialect?"""
    return first[:64].lstrip().startswith((b'{"error"', b'data: {"error"', b"event: error"))


def heartbeat(content_type: str) -> bytes:
    """What a client skips: white space before a JSON value (RFC 8259 §2), a comment in an event stream."""
    return b": keepalive\n\n" if content_type.startswith(SSE) else b" "
