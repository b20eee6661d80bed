"""Request bodies as Go's encoding/json reads them: keys folded, the last wins, one value only."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from email.message import Message
from email.parser import BytesParser
from email.policy import HTTP
from typing import Any

MAP = "map[string]interface {}"
# Go types of the fields that a client may get wrong; JSON kind -> Go types that take it.
FIELD_TYPES = {
    "model": "string",
    "name": "string",
    "source": "string",
    "destination": "string",
    "from": "string",
    "system": "string",
    "template": "string",
    "suffix": "string",
    "prompt": "string",
    "stream": "bool",
    "verbose": "bool",
    "raw": "bool",
    "options": MAP,
    "messages": "[]api.Message",
}
KIND_TAKES = {
    "string": ("string",),
    "bool": ("bool",),
    "object": (MAP,),
    "array": ("[]api.Message",),
    "number": (),
}
UNITS_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


class RequestError(Exception):
    """A request that the server refuses.

    Args:
        layer: `handler`, `middleware` (raised before the handler, other bytes on /v1) or
            `native` (Ollama's own error shape whatever the route).
    """

    def __init__(self, status: int, text: str, layer: str = "handler") -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.layer = layer


class Pairs(dict[str, Any]):
    """A JSON object that remembers its keys in order, duplicates included."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.pairs = pairs


def fold(key: str) -> str:
    """Fold a key as Go does: case, the long s, and (by lower()) the Kelvin sign."""
    return key.lower().replace("ſ", "s")


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    kinds = {str: "string", int: "number", float: "number", list: "array", Pairs: "object"}
    return kinds[type(value)]


def parse_first(text: str) -> Any:
    """Parse the first JSON value; bytes after it do not matter to Go's decoder."""
    try:
        value, _ = json.JSONDecoder(object_pairs_hook=Pairs).raw_decode(text)
    except json.JSONDecodeError as exc:
        if exc.pos >= len(text):
            raise RequestError(400, "unexpected EOF", "middleware") from None
        char = text[exc.pos]
        message = f"invalid character '{char}' looking for beginning of value"
        raise RequestError(400, message, "middleware") from None
    return value


def decode(body: bytes, struct: str, missing: str = "missing request body") -> dict[str, Any]:
    """Decode a request body into fields by folded name.

    Raises:
        RequestError: with Go's text for what Go's decoder refuses.
    """
    text = body.decode("utf-8", "replace").lstrip(" \t\r\n")
    if not text:
        raise RequestError(400, missing, "middleware")
    value = parse_first(text)
    if value is None:
        return {}
    if not isinstance(value, Pairs):
        kind = kind_of(value)
        message = f"json: cannot unmarshal {kind} into Go value of type api.{struct}"
        raise RequestError(400, message, "middleware")
    fields: dict[str, Any] = {}
    for key, item in value.pairs:
        check_type(fold(key), item, struct)
        if item is not None:
            fields[fold(key)] = item
    return fields


def check_type(key: str, value: Any, struct: str) -> None:
    wanted = FIELD_TYPES.get(key)
    if struct != "GenerateRequest" and key == "prompt":
        wanted = "string" if struct == "EmbeddingRequest" else None
    if struct in ("MessagesRequest", "ResponsesRequest") and key == "system":
        # Anthropic allows a list of blocks here.
        return
    if wanted is None or value is None or wanted in KIND_TAKES[kind_of(value)]:
        return
    field = f"{struct}.{key} of type {wanted}"
    message = f"json: cannot unmarshal {kind_of(value)} into Go struct field {field}"
    raise RequestError(400, message, "middleware")


def duration_s(value: Any) -> float:
    """A keep_alive in seconds: a number, or a Go duration; absent means five minutes."""
    if value is None:
        return 300.0
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    text = str(value)
    sign = -1.0 if text.startswith("-") else 1.0
    parts = re.findall(r"([0-9.]+)(ns|us|µs|ms|s|m|h)", text)
    if "".join(number + unit for number, unit in parts) != text.lstrip("+-") or not parts:
        if text.lstrip("+-") == "0":
            return 0.0
        raise RequestError(400, f'time: invalid duration "{text}"', "middleware")
    return sign * sum(float(number) * UNITS_S[unit] for number, unit in parts)


def multipart_fields(content_type: str, body: bytes) -> Mapping[str, bytes]:
    """The parts of a multipart form by name."""
    head = f"Content-Type: {content_type}\r\n\r\n".encode("latin-1")
    message: Message = BytesParser(policy=HTTP).parsebytes(head + body)
    fields: dict[str, bytes] = {}
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        if isinstance(name, str):
            payload = part.get_payload(decode=True)
            fields[name] = payload if isinstance(payload, bytes) else b""
    return fields
