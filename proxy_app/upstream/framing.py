"""Where an HTTP/1.1 body ends: chunked, by length, or with the connection.

A decoder takes bytes as they come from the socket and gives them back as chunks ready to be sent to a client, so
that the usual case, one whole chunk in one read, is passed on untouched. Source: RFC 9112 §6.3, §7.1.
"""

from __future__ import annotations

import json
import re
from typing import Protocol

from proxy_app.errors import BadAnswer, Truncated

# Go's own writer never needs more than 8 digits; 16 would already be more than any disk.
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:[ \t]*;[^\r\n]*)?\r\n")
_LONGEST_LINE = 4096
_LONGEST_TRAILER = 16384
_LONGEST_RECORD = 65536


class Framing(Protocol):
    """One body's decoder.

    `done`: the body is complete. `failure`: it broke; what was whole before that has been given out.
    """

    done: bool
    failure: Truncated | None

    def feed(self, data: bytes) -> bytes:
        """Take what a read gave; returns the payload in it, up to where it breaks the framing (see `failure`)."""

    def end(self) -> None:
        """The backend closed the connection.

        Raises:
            Truncated: before the body was complete.
        """


def chunk(payload: bytes) -> bytes:
    """A payload as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


class Chunked:
    """A body in chunks."""

    def __init__(self) -> None:
        self.done = False
        self.failure: Truncated | None = None
        self._held = b""
        self._left = 0
        self._in_trailer = False

    def feed(self, data: bytes) -> bytes:
        return data[data.find(b"\n") + 1 : -2] if self._is_one_chunk(data) else self._feed(data)

    def feed_chunk(self, data: bytes) -> bytes:
        """As `feed`, but the payload comes as a chunk: the very bytes that came in, where they are one."""
        if self._is_one_chunk(data):
            return data
        payload = self._feed(data)
        return chunk(payload) if payload else b""

    def _is_one_chunk(self, data: bytes) -> bool:
        if self._held or self._left or self._in_trailer:
            return False
        line_end = data.find(b"\r\n", 0, 10)
        size = _SIZES.get(data[:line_end])
        return size is not None and len(data) == line_end + size + 4 and data.endswith(b"\r\n")

    def end(self) -> None:
        if not self.done:
            raise Truncated("the connection was closed in the middle of the answer")

    def _feed(self, data: bytes) -> bytes:
        """Any cut of the bytes. `_left` counts what is missing of the present chunk, its CRLF included."""
        data = self._held + data
        self._held = b""
        payload: list[bytes] = []
        try:
            self._decode(data, payload)
        except Truncated as exc:
            self.failure = exc
        return b"".join(payload)

    def _decode(self, data: bytes, payload: list[bytes]) -> None:
        place = 0
        while place < len(data) and not self.done:
            if self._in_trailer:
                place = self._trailer(data, place)
            elif self._left:
                place = self._inside(data, place, payload)
            else:
                place = self._size_line(data, place)
        if self.done and place < len(data):
            raise Truncated("bytes follow the end of the answer")

    def _inside(self, data: bytes, place: int, payload: list[bytes]) -> int:
        piece = data[place : place + self._left]
        body_left = max(0, self._left - 2)
        payload.append(piece[:body_left])
        end = piece[body_left:]
        if not b"\r\n"[2 - min(2, self._left) :].startswith(end):
            raise Truncated("a chunk is longer than it says")
        self._left -= len(piece)
        return place + len(piece)

    def _size_line(self, data: bytes, place: int) -> int:
        match = _SIZE_LINE.match(data, place)
        if match is None:
            self._hold(data, place, _LONGEST_LINE)
            return len(data)
        size = int(match.group(1), 16)
        self._left, self._in_trailer = (size + 2, False) if size else (0, True)
        return match.end()

    def _trailer(self, data: bytes, place: int) -> int:
        if data.startswith(b"\r\n", place):
            self.done = True
            return place + 2
        end = data.find(b"\r\n\r\n", place)
        if end < 0:
            self._hold(data, place, _LONGEST_TRAILER)
            return len(data)
        self.done = True
        return end + 4

    def _hold(self, data: bytes, place: int, longest: int) -> None:
        self._held = data[place:]
        broken = b"\n" in self._held and not self._in_trailer
        if broken or len(self._held) > longest:
            raise Truncated("a chunk's size cannot be read")


# All sizes up to 16 KiB as Go writes them: looking one up is cheaper and stricter than reading it.
_SIZES = {b"%x" % size: size for size in range(1, 16385)}


class Sized:
    """A body of known length."""

    def __init__(self, length: int) -> None:
        self.failure: Truncated | None = None
        self.length = length
        self._left = length
        self.done = length == 0

    def feed(self, data: bytes) -> bytes:
        if len(data) > self._left:
            self.failure = Truncated("the answer is longer than its Content-Length")
            return b""
        self._left -= len(data)
        self.done = self._left == 0
        return data

    def end(self) -> None:
        if not self.done:
            raise Truncated("the answer is shorter than its Content-Length")


class UntilClose:
    """A body that ends with its connection; whether it is whole, its own end has to tell.

    Of a stream that is its last record, which whoever reads the stream looks at.

    Args:
        content_type: a JSON answer has to be one whole value.
    """

    def __init__(self, content_type: str) -> None:
        self._is_json = content_type.startswith("application/json")
        self.done = False
        self.failure: Truncated | None = None
        self._tail = b""

    def feed(self, data: bytes) -> bytes:
        self._tail = (self._tail + data)[-_LONGEST_RECORD:]
        return data

    def end(self) -> None:
        if self._is_json and not self._is_whole(self._tail.rstrip()):
            raise Truncated("the connection was closed before the answer's end")
        self.done = True

    def _is_whole(self, last: bytes) -> bool:
        return _is_json(last) if len(self._tail) < _LONGEST_RECORD else last.endswith((b"}", b"]"))


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def framing_of(status: int, headers: list[tuple[str, str]]) -> Chunked | Sized | UntilClose:
    """The framing that an answer's headers announce.

    Raises:
        BadAnswer: lengths that contradict each other, or a coding that is not plain chunked.
    """
    codings = _values(headers, "transfer-encoding")
    lengths = set(_values(headers, "content-length"))
    if status in (204, 304):
        return Sized(0)
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise BadAnswer(f"unknown transfer coding {codings!r}")
        return Chunked()
    if len(lengths) > 1 or not all(re.fullmatch(r"\d{1,18}", length) for length in lengths):
        raise BadAnswer(f"contradicting or broken Content-Length {sorted(lengths)!r}")
    if lengths:
        return Sized(int(lengths.pop()))
    return UntilClose(next(iter(_values(headers, "content-type")), ""))


def _values(headers: list[tuple[str, str]], wanted: str) -> list[str]:
    found = (value for name, value in headers if name.lower() == wanted)
    return [token.strip() for value in found for token in value.split(",") if token.strip()]
