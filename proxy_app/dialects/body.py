"""What routing has to know of a request, read from its body without touching the rest of it.

One pure function, `asked`, knows all four forms, in this order: JSON (whatever the content type says, as Ollama
itself does), multipart form, urlencoded form, query.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any
from urllib.parse import parse_qsl

import msgspec
import multipart

from proxy_app.dialects.gojson import Pairs, fold, read_object
from proxy_app.domain import Buffer
from proxy_app.errors import BadRequest

_BOUNDARY = re.compile(r';\s*boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)
# In whatever way RFC 2231 lets it be written: Go reads those too, and would divide the body elsewhere.
_BOUNDARIES = re.compile(r"boundary[\s*]*(?:\d+\*?)?\s*=", re.IGNORECASE)
_OWN_NAME = re.compile(r"(?:^|;)\s*name\s*(\*?)", re.IGNORECASE)
_INK = re.compile(rb"[^ \t\r\n]")
_NULL = re.compile(rb"[ \t\r\n]*null")
_NOT_JSON = "the request body is not valid JSON"
# A body that fails to parse is parsed once more by the slower reader that tolerates bytes after the
# first value; that reader stalls the worker for 4 ms per MiB (measured), so only small bodies get it.
_SECOND_LOOK_BYTES = 256 << 10
# Far above what any API has. Each costs a step of Python, and while it runs no other stream of the worker moves.
_MOST_KEYS = 256
_LONGEST_FORM = 1 << 20
_SLICE = 64 << 10
_LONGEST_MODEL = 16 << 10


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for.

    Args:
        model: the name as the client wrote it; "" where it names none.
        stream: its `stream` field; None where that is not there or not a boolean.
    """

    model: str = ""
    stream: bool | None = None


def asked(body: Buffer, content_type: str = "", query: str = "", *, is_form: bool = False) -> Asked:
    """What a request asks for.

    Args:
        body: the whole body, exactly as sent (decoded, where it was compressed).
        content_type: the Content-Type header.
        query: the query string, without its question mark.
        is_form: is this one of the routes that Ollama itself reads a multipart form on?

    Raises:
        BadRequest: JSON that is broken or not an object, a model that is not a text, or two keys that
            fold to one routing name (Go takes the last, others the first: a way around every check).
    """
    # First of all: who is let in by another reading than a backend's is let in to everything.
    if not is_form and _begins_json(body):
        return _of_json(body)
    boundary = _multipart_boundary(content_type)
    if boundary:
        if _form_values(query):
            # Go's FormValue takes the query's before the form's.
            raise BadRequest("send 'model' as a field of the form, not in the query")
        return Asked(_only(_multipart_values(body, boundary), "form field"))
    if not is_blank(body) and not _is_form(body, content_type):
        return _of_json(body)
    return Asked(_only(_form_values(_text(body)), "form field") or _only(_form_values(query), "query parameter"))


def is_blank(body: Buffer) -> bool:
    """Is there nothing in it but JSON's white space? What hides behind more of that than a page is refused later."""
    return len(body) <= _SLICE and _INK.search(body) is None


def _begins_json(body: Buffer) -> bool:
    """Could a backend find a JSON object or list here? Behind more white space than a page, for all we know."""
    ink = _INK.search(body, 0, _SLICE)
    return body[ink.start() : ink.end()] in (b"{", b"[") if ink else len(body) > _SLICE


def _is_form(body: Buffer, content_type: str) -> bool:
    return "x-www-form-urlencoded" in content_type.lower() and b"=" in body[:4096]


def _of_json(body: Buffer) -> Asked:
    try:
        members = _all_members(body) if len(body) <= _SECOND_LOOK_BYTES else _routing_members(body)
    except msgspec.ValidationError:
        if _NULL.match(body):
            # To Go, null is an object without members.
            return Asked()
        raise BadRequest("the request body has to be a JSON object") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, _Duplicate):
        return _of_pairs(_second_look(body))
    return _of_pairs(members.items())


def members_of(body: Buffer) -> dict[str, msgspec.Raw]:
    """All members of a body's top level, each key once, for who has to see everything that a backend will.

    Raises:
        BadRequest: no JSON object, or one that another reader may take for another one.
    """
    try:
        return _all_members(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(_NOT_JSON) from None
    except _Duplicate:
        raise BadRequest("a key stands twice in the request body; send it once") from None


def _all_members(body: Buffer) -> dict[str, msgspec.Raw]:
    members = _decode(body)
    if len(members) > _MOST_KEYS:
        raise BadRequest("the request body has too many keys")
    _refuse_duplicates(body, members)
    return members


def _routing_members(body: Buffer) -> dict[str, msgspec.Raw]:
    """Only what routing needs, in all its spellings: to build the others of a long body may take seconds (measured:
    4.7 s for 64 MiB of short keys). Of one spelling that stands twice the last counts, as for Go."""
    found = _decode_routing(body)
    return {name: raw for field, name in _SPELLINGS.items() if (raw := getattr(found, field))}


_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Every key that folds to one of the two: see `gojson.fold`.
_SPELLINGS = {
    f"field{number}": "".join(letters)
    for number, letters in enumerate(
        letters
        for word in ("model", "stream")
        for letters in product(*({c, c.upper(), "\u017f" if c == "s" else c} for c in word))
    )
}
_ROUTING = msgspec.defstruct(
    "_ROUTING", [(field, msgspec.Raw, msgspec.Raw(b"")) for field in _SPELLINGS], rename=_SPELLINGS
)
_decode_routing = msgspec.json.Decoder(_ROUTING).decode


def _of_pairs(pairs: Iterable[tuple[str, Any]]) -> Asked:
    found: dict[str, list[tuple[str, Any]]] = {"model": [], "stream": []}
    for key, value in pairs:
        if (field := fold(key)) in found:
            found[field].append((key, value))
    model, stream = _value(found["model"]), _value(found["stream"])
    if model is not None and not isinstance(model, str):
        raise BadRequest("model has to be a string")
    return Asked(model or "", stream if isinstance(stream, bool) else None)


def _value(found: Pairs) -> Any:
    if len(found) > 1:
        keys = " and ".join(repr(key) for key, _ in found)
        raise BadRequest(f"the keys {keys} mean the same field; send one of them")
    value = found[0][1] if found else None
    try:
        return msgspec.json.decode(value) if isinstance(value, msgspec.Raw) else value
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise BadRequest(_NOT_JSON) from None


def _second_look(body: Buffer) -> Pairs:
    """All members, duplicates included, read by the slower parser that is as tolerant as Ollama's."""
    if len(body) > _SECOND_LOOK_BYTES:
        raise BadRequest(_NOT_JSON)
    return read_object(body[:], "Request")


class _Duplicate(Exception):
    """Some key stands twice at the top level."""


# Possessive: a long text in the place of a key must not be tried in every way.
_KEY = re.compile(rb'[ \t\r\n,{]*+"((?:[^"\\]|\\.){0,4096}+)"[ \t\r\n]*+:[ \t\r\n]*+', re.DOTALL)
_EDGE = 64


def _refuse_duplicates(body: Buffer, members: dict[str, msgspec.Raw]) -> None:
    """Walk the top level: where a key stands twice, a value here is not the one the decoder kept.

    The walk jumps over each value by its known length, so it costs as many steps as there are keys. Of a long
    value only the edges are compared: the decoder's choice (the last) is Ollama's choice in any case.
    """
    place = 0
    for _ in range(len(members)):
        match = _KEY.match(body, place)
        value = memoryview(members.get(_key(match), b"")) if match else b""
        place = match.end() + len(value) if match else 0
        start = place - len(value)
        if not value or body[start : min(place, start + _EDGE)] != value[:_EDGE]:
            raise _Duplicate
        if body[max(start, place - _EDGE) : place] != value[-_EDGE:]:
            raise _Duplicate
    if _KEY.match(body, place):
        raise _Duplicate


def _key(match: re.Match[bytes]) -> str:
    try:
        return str(json.loads(b'"%b"' % match.group(1)))
    except ValueError:
        raise BadRequest(_NOT_JSON) from None


def _multipart_boundary(content_type: str) -> str:
    if not content_type.lower().startswith("multipart/form-data"):
        return ""
    match = _BOUNDARY.search(content_type)
    if not match:
        raise BadRequest("no multipart boundary param in Content-Type")
    if len(_BOUNDARIES.findall(content_type)) > 1:
        raise BadRequest("the Content-Type has several boundaries; send one")
    return match.group(1) or match.group(2)


def _multipart_values(body: Buffer, boundary: str) -> list[str]:
    values, wanted = [], False
    try:
        for event in _multipart_events(body, boundary):
            if isinstance(event, multipart.MultipartSegment):
                wanted = _segment_name(event) == "model"
                values += [b""] if wanted else []
            elif event and wanted:
                values[-1] += bytes(event)
                if len(values[-1]) > _LONGEST_MODEL:
                    raise BadRequest("the form field 'model' is too long")
    except multipart.MultipartError as exc:
        raise BadRequest(f"failed to parse multipart form: {exc}") from None
    return [value.decode("utf-8", "replace") for value in values]


def _segment_name(segment: multipart.MultipartSegment) -> str:
    """The field's name, where no other reader can take it for another one.

    Raises:
        BadRequest: it is written in a way of which readers differ.
    """
    marks = _OWN_NAME.findall(segment.header("Content-Disposition") or "")
    if len(marks) > 1 or "*" in marks:
        raise BadRequest("failed to parse multipart form: a field's name has to stand once, and plainly")
    return str(segment.name)


def _multipart_events(body: Buffer, boundary: str) -> Iterable[Any]:
    with multipart.PushMultipartParser(boundary, content_length=len(body), max_segment_count=_MOST_KEYS) as parser:
        for start in range(0, len(body), _SLICE):
            yield from parser.parse(body[start : start + _SLICE])


def _text(body: Buffer) -> str:
    # One more than is allowed, so that it is seen to be too long.
    return body[: _LONGEST_FORM + 1].decode("latin-1")


def _form_values(text: str) -> list[str]:
    if len(text) > _LONGEST_FORM:
        raise BadRequest("the form is too long")
    try:
        pairs = parse_qsl(text, keep_blank_values=True, max_num_fields=_MOST_KEYS)
    except ValueError:
        raise BadRequest("the form has too many fields") from None
    return [value for key, value in pairs if key == "model"]


def _only(values: list[str], what: str) -> str:
    if len(values) > 1:
        raise BadRequest(f"the {what} 'model' stands twice; send it once")
    return values[0] if values else ""
