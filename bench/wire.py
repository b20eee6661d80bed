"""As much of HTTP/1.1 as a load generator needs: where an answer ends, and what is in it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType


class BadAnswer(Exception):
    """An answer that is not what the bench asked for; it fails the run."""


@dataclass(frozen=True, slots=True)
class Head:
    status: int
    # None: the answer comes in chunks.
    length: int | None


@lru_cache(maxsize=64)
def parse_head(raw: bytes) -> Head:
    """Parse a response's head; it repeats within a second, so that this costs next to nothing."""
    first, *lines = raw.split(b"\r\n")
    fields = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
    status = int(first.split(b" ", 2)[1])
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        return Head(status, None)
    if b"content-length" not in fields:
        raise BadAnswer(f"an answer without a length: {raw[:200]!r}")
    return Head(status, int(fields[b"content-length"]))


def request(
    method: str, path: str, port: int, body: bytes = b"", headers: Mapping[str, str] = MappingProxyType({})
) -> bytes:
    """A request ready to be sent on a connection that is kept."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Accept: */*"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if method == "POST":
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode() + body


class Chunks:
    """A chunked body, taken apart once all of it is there.

    Args:
        raw: everything from the head's end to the terminator.
    """

    def __init__(self, raw: bytes) -> None:
        pieces: list[bytes] = []
        self._ends: list[int] = []
        self._raw_ends: list[int] = []
        place = size_sum = 0
        while True:
            line_end = raw.index(b"\r\n", place)
            size = int(raw[place:line_end], 16)
            place = line_end + 2 + size + 2
            if raw[place - 2 : place] != b"\r\n":
                raise BadAnswer(f"broken chunk before byte {place}")
            if not size:
                break
            pieces.append(raw[line_end + 2 : place - 2])
            size_sum += size
            self._ends.append(size_sum)
            self._raw_ends.append(place)
        if place != len(raw):
            raise BadAnswer(f"{len(raw) - place} bytes follow the end of an answer")
        self.body = b"".join(pieces)

    def raw_end(self, offset: int) -> int:
        """How much of `raw` must be there for the body up to `offset` to be known."""
        return self._raw_ends[bisect_left(self._ends, offset)]
