"""What an answer cost, in its own words: tokens in and out, and how long a GPU worked for it.

Source: Ollama api/types.go (durations in ns; a metric of 0 is left out), openai/openai.go, anthropic/anthropic.go
(v0.33.0-rc2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from proxy_app.dialects.endings import NDJSON, SSE
from proxy_app.dialects.gojson import fold
from proxy_app.domain import Buffer

_NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Spent:
    """Args:
    gpu_ms: prompt and answer. out_ms: of that, the answer, where it is known apart.
    load_ms: loading the model.
    is_exact: the backend said all of it.
    """

    tokens_in: int = 0
    tokens_out: int = 0
    gpu_ms: int = 0
    load_ms: int = 0
    is_exact: bool = True
    out_ms: int = 0

    @property
    def tokens(self) -> int:
        return self.tokens_in + self.tokens_out


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Inner(msgspec.Struct):
    usage: _Usage | None = None


class _Record(msgspec.Struct):
    """The top level of a last record, in whatever dialect."""

    prompt_eval_count: int = 0
    eval_count: int = 0
    total_duration: int = 0
    load_duration: int = 0
    prompt_eval_duration: int = 0
    eval_duration: int = 0
    usage: _Usage | None = None
    response: Any = None


_record = msgspec.json.Decoder(_Record).decode
_DATA = re.compile(rb"^data:\s*(\{.*\})\s*$", re.MULTILINE)


def spent(content_type: str, last: bytes) -> Spent | None:
    """What the end of an answer says of its cost; None where it says nothing.

    Args:
        last: a JSON answer, of which the middle may be missing, or the last records of a stream.
    """
    if content_type.startswith(SSE):
        events = [_read(match.group(1)) for match in _DATA.finditer(last)]
        return next((found for event in reversed(events) if (found := _of_usage(event))), None)
    if content_type.startswith(NDJSON):
        return _of_record(_read(last.strip().rpartition(b"\n")[2]))
    if not content_type.startswith("application/json"):
        return None
    # Of a long answer only its beginning and its end are kept. Vectors stand in between, and what they cost after them.
    return _of_record(_read(last)) or _of_record(_read(b"{" + last.rpartition(b"],")[2]))


def token_mark(content_type: str, route: str) -> bytes:
    """What stands once in each record of a stream that brings a token."""
    if content_type.startswith(NDJSON):
        return b'"done":false'
    return b'"text":' if route == "/v1/completions" else b'"delta":'


def with_usage(body: Buffer) -> bytes | None:
    """The body of an OpenAI chat that streams, asking for its usage; None where it asks already, or is too long."""
    if len(body) > _LONGEST:
        return None
    try:
        members = _members(body)
        names = [key for key in members if fold(key) == "stream_options"] or ["stream_options"]
        name = names[0]
        given = msgspec.json.decode(members.get(name, b"null"))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    options = {} if given is None else given
    if len(names) > 1 or not isinstance(options, dict):
        return None
    # Go folds keys and takes the last of them.
    others = {key: value for key, value in options.items() if fold(key) != "include_usage"}
    if any(options[key] for key in options.keys() - others.keys()):
        return None
    members[name] = msgspec.Raw(msgspec.json.encode({**others, "include_usage": True}))
    return msgspec.json.encode(members)


class WithoutUsage:
    """Takes the record that the client did not ask for out of that stream, however its pieces are cut."""

    def __init__(self) -> None:
        self._held = b""

    def __call__(self, piece: bytes) -> bytes:
        """What goes out of a piece: whole records; of one that is cut, nothing before the rest has come."""
        text = self._held + piece if self._held else piece
        # Where the last record ends that is whole; other servers end theirs with CRLF.
        end = max((text.rfind(mark) + len(mark) for mark in _ENDS if mark in text), default=0)
        whole, self._held = (text, b"") if end == len(text) else (text[:end], text[end:])
        return _USAGE_FIELD.sub(b"", _USAGE_EVENT.sub(b"", whole)) if b'"usage"' in whole else whole


_LONGEST = 1 << 20
# Far above what any answer costs; far below what would end a key's day because one backend talks nonsense.
_MOST = 10_000_000
_ENDS = (b"\n\n", b"\r\n\r\n")
_members = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
# Completions say it, as zeros, in every record before the one that counts.
_USAGE_FIELD = re.compile(rb',"usage":\{[^{}\n]*\}(?=\}\n)')
_USAGE_EVENT = re.compile(rb'^data: ?\{[^\n]*"choices": ?\[\][^\n]*"usage": ?\{[^\n]*\}\r?\n\r?\n', re.MULTILINE)


def _read(text: bytes) -> _Record:
    try:
        return _record(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Record()


def _of_record(record: _Record) -> Spent | None:
    work_ns = record.prompt_eval_duration + record.eval_duration
    if not work_ns and record.total_duration:
        # Embeddings say how long all of it took, and nothing of its parts.
        work_ns = record.total_duration - record.load_duration
    if record.prompt_eval_count or record.eval_count or work_ns:
        ms = (sane(work_ns // _NS_PER_MS), sane(record.load_duration // _NS_PER_MS))
        out_ms = sane(record.eval_duration // _NS_PER_MS)
        return Spent(sane(record.prompt_eval_count), sane(record.eval_count), *ms, out_ms=out_ms)
    return _of_usage(record)


def _of_usage(record: _Record) -> Spent | None:
    usage = record.usage
    if usage is None and isinstance(record.response, dict):
        try:
            usage = msgspec.convert(record.response, _Inner).usage
        except msgspec.ValidationError:
            return None
    if usage is None:
        return None
    tokens_in, tokens_out = usage.prompt_tokens or usage.input_tokens, usage.completion_tokens or usage.output_tokens
    return Spent(sane(tokens_in), sane(tokens_out), is_exact=False)


def sane(number: int) -> int:
    """A count that every store takes, whatever a backend says."""
    return min(max(0, number), _MOST)
