"""Requests as a fake receives and remembers them."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from typing import Any

from conformance.fakes.answers import Header


@dataclass(eq=False)
class RecordedRequest:
    """One request as it came, and what became of it. Written by the fake, read by tests.

    Args:
        nth: its place on its connection; above 1 the connection was used again.
    """

    method: str
    path: str
    version: str
    headers: list[Header]
    body: bytes = b""
    at: float = field(default_factory=time.monotonic)
    client_gone: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    gone_after_s: float | None = None
    nth: int = 1

    @property
    def target(self) -> str:
        """The path without its query."""
        return self.path.partition("?")[0]

    def header(self, name: str) -> str | None:
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    def all(self, name: str) -> list[str]:
        """The values of a header that may come several times."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    def json(self) -> Any:
        return json.loads(self.body)

    def left(self) -> None:
        """Note that the peer closed before the answer was complete."""
        self.gone_after_s = time.monotonic() - self.at
        self.client_gone.set()

    def __repr__(self) -> str:
        return f"<{self.method} {self.path} {len(self.body)} bytes>"


class BadRequest(ValueError):
    """Bytes that are no HTTP request."""


def parse_head(block: bytes) -> RecordedRequest:
    """Parse a request line and headers; strict where Go is strict enough to matter."""
    first, *lines = block.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        raise BadRequest("malformed HTTP request")
    headers: list[Header] = []
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest("malformed MIME header line")
        headers.append((name, value.strip(" \t")))
    request = RecordedRequest(words[0], words[1], words[2], headers)
    if request.version == "HTTP/1.1" and request.header("host") is None:
        raise BadRequest("missing required Host header")
    return request


def dechunk(buffer: bytearray) -> tuple[bytes, int] | None:
    """Decode a chunked body; (body, bytes used) when it is complete."""
    parts: list[bytearray] = []
    at = 0
    while (end := buffer.find(b"\r\n", at)) >= 0:
        try:
            size = int(buffer[at:end].partition(b";")[0], 16)
        except ValueError:
            raise BadRequest("invalid chunk size") from None
        if len(buffer) < end + 2 + size + 2:
            return None
        parts.append(buffer[end + 2 : end + 2 + size])
        at = end + 2 + size + 2
        if size == 0:
            return b"".join(parts), at
    return None


def body_from(request: RecordedRequest, rest: bytearray) -> tuple[bytes, int] | None:
    """Return (body, bytes used) of what follows the head, None while bytes are missing."""
    if (request.header("transfer-encoding") or "").lower() == "chunked":
        return dechunk(rest)
    length = request.header("content-length") or "0"
    if not length.isdigit():
        raise BadRequest("bad Content-Length")
    size = int(length)
    return (bytes(rest[:size]), size) if len(rest) >= size else None
