"""Holding a request to what its key may ask for: context, length of the answer, pictures, time in memory.

The body is written anew only where something has to change; all else of it stays as it was sent, value by value.

Source of the fields: Ollama api/types.go (num_ctx, num_predict in `options`; `keep_alive`: seconds or a Go duration,
negative means for ever), openai/openai.go, anthropic/anthropic.go (v0.33.0-rc2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy_app.dialects.body import members_of
from proxy_app.dialects.errors import Dialect
from proxy_app.dialects.gojson import fold
from proxy_app.domain import Buffer
from proxy_app.errors import BadRequest

_ANSWER_FIELDS: dict[str, tuple[str, ...]] = {
    "openai": ("max_completion_tokens", "max_tokens"),
    "responses": ("max_output_tokens",),
    "anthropic": ("max_tokens",),
}
_NUMBER = r"(?:\d+\.?\d*|\.\d+)"
_UNIT = "ns|us|\u00b5s|\u03bcs|ms|s|m|h"
_DURATION = re.compile(rf"({_NUMBER})({_UNIT})")
_DURATIONS = re.compile(rf"[+-]?(?:{_NUMBER}(?:{_UNIT}))+")
_SECONDS = {"ns": 1e-9, "us": 1e-6, "\u00b5s": 1e-6, "\u03bcs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}

_SMALL_BYTES = 256 << 10
_SLICE = 1 << 20
# Decoding that many lists takes about 0.2 s (measured: 3 MB of them 0.27 s); no text or picture has as many marks.
_MOST_PIECES = 1_000_000

Members = dict[str, msgspec.Raw]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Args: None means no bound. refuses: say no, rather than give less than was asked for."""

    num_ctx: int | None = None
    num_predict: int | None = None
    images: int | None = None
    keep_alive: int | None = None
    refuses: bool = False

    @property
    def is_nothing(self) -> bool:
        return self == Bounds(refuses=self.refuses)


def bounded(body: Buffer, dialect: Dialect, bounds: Bounds) -> bytes | None:
    """The body within the bounds; None where it is so already.

    Raises:
        BadRequest: it asks for more, and that is refused; or it is JSON of a kind that could hide something.
    """
    _check_structure(body)
    members = members_of(body)
    work = _Work(members, bounds)
    work.check_pictures()
    if dialect == "ollama":
        work.bound_options()
        work.bound_keep_alive()
    else:
        work.bound_answer(_ANSWER_FIELDS[dialect])
    return msgspec.json.encode(members) if work.changed else None


def stated_length(body: Buffer, dialect: Dialect) -> int | None:
    """How many tokens a request lets its answer have; None where it does not say, or nobody can tell at once."""
    if len(body) > _SMALL_BYTES:
        return None
    try:
        work = _Work(members_of(body), Bounds())
        options = work.value("options") if dialect == "ollama" else None
        found = options.get("num_predict") if isinstance(options, dict) else None
        for name in _ANSWER_FIELDS.get(dialect, ()):
            found = work.value(name) if found is None else found
    except BadRequest:
        return None
    return int(found) if isinstance(found, (int, float)) and not isinstance(found, bool) and found > 0 else None


def _check_structure(body: Buffer) -> None:
    """Raises: BadRequest: to read all of it would hold up every other stream of the worker."""
    if len(body) <= _SMALL_BYTES:
        return
    found = 0
    for start in range(0, len(body), _SLICE):
        piece = body[start : start + _SLICE]
        found += piece.count(b"[") + piece.count(b"{") + piece.count(b",")
    if found > _MOST_PIECES:
        raise BadRequest("this request has too many parts for a key with limits")


@dataclass(slots=True)
class _Work:
    members: Members
    bounds: Bounds
    changed: bool = False

    def check_pictures(self) -> None:
        most = self.bounds.images
        if most is None:
            return
        count = _pictures(self.value("messages")) + _pictures(self.value("input")) + _listed(self.value("images"))
        if count > most:
            raise BadRequest(f"this key may send {most} images with a request, and this one has {count}")

    def bound_options(self) -> None:
        options = self.value("options")
        options = dict(options) if isinstance(options, dict) else {}
        before = dict(options)
        if self.bounds.num_ctx is not None and "num_ctx" in options:
            options["num_ctx"] = self._least("num_ctx", options["num_ctx"], self.bounds.num_ctx, 0)
        if self.bounds.num_predict is not None:
            options["num_predict"] = self._least("num_predict", options.get("num_predict"), self.bounds.num_predict)
        if options != before:
            self._put("options", options)

    def bound_answer(self, fields: tuple[str, ...]) -> None:
        most = self.bounds.num_predict
        if most is None:
            return
        # Ollama reads the last of them alone; the others are for backends that read those.
        given = [field for field in fields if field == fields[-1] or self._key(field) is not None]
        for field in given:
            value = self.value(field)
            least = self._least(field, value, most)
            if least != value:
                self._put(field, least)

    def bound_keep_alive(self) -> None:
        most = self.bounds.keep_alive
        value = self.value("keep_alive")
        if most is None or value is None:
            return
        wanted = seconds(value)
        if wanted is None or 0 <= wanted <= most:
            return
        self._refuse("keep_alive", value, most)
        self._put("keep_alive", most)

    def _least(self, name: str, value: Any, most: int, first: int = 1) -> Any:
        """The value, or the bound where the value is above it or means "without end": for a length 0 does, and what
        the backend cuts down to that."""
        if isinstance(value, (int, float)) and not isinstance(value, bool) and first <= value <= most:
            return value
        if value is not None and not isinstance(value, (int, float)):
            # Of a wrong type: the backend's own words for that are better.
            return value
        if value is not None:
            self._refuse(name, value, most)
        return most

    def _refuse(self, name: str, value: Any, most: int) -> None:
        if self.bounds.refuses:
            raise BadRequest(f"this key may ask for {name} up to {most}, and this request asks for {value}")

    def _key(self, name: str) -> str | None:
        """The key that folds to a name, as Go reads it. Raises: BadRequest: there are several."""
        found = [key for key in self.members if fold(key) == name]
        if len(found) > 1:
            raise BadRequest(f"the keys {' and '.join(map(repr, found))} mean the same field; send one of them")
        return found[0] if found else None

    def value(self, name: str) -> Any:
        key = self._key(name)
        if key is None:
            return None
        try:
            return msgspec.json.decode(self.members[key])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise BadRequest("the request body is not valid JSON") from None

    def _put(self, name: str, value: Any) -> None:
        for key in [key for key in self.members if fold(key) == name]:
            del self.members[key]
        self.members[name] = msgspec.Raw(msgspec.json.encode(value))
        self.changed = True


def _pictures(messages: Any) -> int:
    """Pictures in messages of any dialect: lists named `images`, and parts whose type says so."""
    if not isinstance(messages, list):
        return 0
    found = 0
    for message in messages:
        if isinstance(message, dict):
            # Go folds the keys of its structs at every depth.
            fields = [(fold(key), value) for key, value in message.items()]
            found += sum(_listed(value) for name, value in fields if name == "images")
            found += _parts([message])
    return found


def _parts(content: Any) -> int:
    """Parts of pictures in a content, and in the contents of its parts: a tool's result has them too."""
    if not isinstance(content, list):
        return 0
    fields = [(fold(key), value) for part in content if isinstance(part, dict) for key, value in part.items()]
    own = sum("image" in str(value) for name, value in fields if name == "type")
    return own + sum(_parts(value) for name, value in fields if name == "content")


def _listed(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


def seconds(value: Any) -> float | None:
    """A keep_alive in seconds, negative for "for ever"; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if not isinstance(value, str):
        return None
    if not _DURATIONS.fullmatch(value):
        # No duration of Go's: the backend says so.
        return None
    sign = -1.0 if value.startswith("-") else 1.0
    return sign * sum(float(number) * _SECONDS[unit] for number, unit in _DURATION.findall(value))
