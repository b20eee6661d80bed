"""JSON read as Go's encoding/json reads it: keys fold, the last one wins, bytes after the first value are ignored.

Source: recorded answers of Ollama v0.33.0-rc2 (tests/golden/show_json_forms_200, show_*_400) and Go's decode.go.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from proxy_app.errors import BadRequest, EmptyBody

_BLANKS = " \t\r\n"
# encoding/json's foldName: ASCII case, and the two letters outside ASCII that fold into it.
_FOLD = str.maketrans({"\u017f": "s", "\u212a": "k"})

Pairs = list[tuple[str, Any]]


class GoObject:
    """An object's members in order, duplicates included."""

    __slots__ = ("pairs",)

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs


def fold(key: str) -> str:
    """The form in which Go compares a JSON key with a field's name."""
    return key.translate(_FOLD).lower()


def read_object(body: bytes, go_struct: str) -> Pairs:
    """Read the first JSON value of a body, which has to be an object (or null).

    Raises:
        EmptyBody: nothing but blanks.
        BadRequest: not JSON, or another kind of value.
    """
    text = body.decode("utf-8", "replace").lstrip(_BLANKS)
    if not text:
        raise EmptyBody
    try:
        value, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        raise BadRequest("the request body is not valid JSON") from None
    if value is None:
        return []
    if not isinstance(value, GoObject):
        raise BadRequest(f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{go_struct}")
    return value.pairs


def read_fields(body: bytes, go_struct: str, go_types: Mapping[str, str]) -> dict[str, Any]:
    """The fields of a body that somebody wants to know, by folded key; null leaves a field as it was.

    Args:
        go_types: what is wanted, with the Go types that error texts name.

    Raises:
        EmptyBody, BadRequest: with Ollama's own text where it is fixed.
    """
    values: dict[str, Any] = {}
    for key, value in read_object(body, go_struct):
        field = fold(key)
        go_type = go_types.get(field)
        if go_type is None or value is None:
            continue
        if not isinstance(value, _KINDS[go_type]):
            raise BadRequest(
                f"json: cannot unmarshal {kind_of(value)} into Go struct field {go_struct}.{field} of type {go_type}"
            )
        values[field] = value
    return values


def kind_of(value: object) -> str:
    """Go's word for a JSON value's kind, as its error texts use it."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, str):
        return "string"
    if isinstance(value, (int, float)):
        return "number"
    return "array" if isinstance(value, list) else "object"


def _no_constants(word: str) -> Any:
    raise ValueError(f"{word} is not JSON")


_KINDS = {"string": str, "bool": bool, "map[string]interface {}": GoObject, "map[string]string": GoObject}
_DECODER = json.JSONDecoder(object_pairs_hook=GoObject, parse_constant=_no_constants)
