"""Answers of a backend byte by byte: which piece comes in which packet, and how the body ends."""

from __future__ import annotations

import random
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from conformance.fakes import faults
from conformance.fakes.answers import JSON_UTF8, NDJSON, SSE, Header
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.wire import LAST_CHUNK, chunk, head_bytes

CHUNKED = ("Transfer-Encoding", "chunked")
# Between two packets, in seconds: the reader wakes up for each.
PAUSE_S = 0.03

__all__ = [
    "CHUNKED",
    "JSON_UTF8",
    "LAST_CHUNK",
    "NDJSON",
    "SSE",
    "AsPlanned",
    "Halting",
    "Packets",
    "Silence",
    "chunk",
    "chunked",
    "cut",
    "is_streamed",
    "kind_of",
]


@dataclass(frozen=True)
class Packets(faults.Fault):
    """A head with these headers and the first packet, then packet by packet, then EOF."""

    headers: Sequence[Header]
    packets: Sequence[bytes] = field(repr=False)
    pause_s: float = PAUSE_S

    async def play(self, exchange: faults.Exchange) -> None:
        pending = head_bytes(200, self.headers)
        for packet in self.packets:
            await exchange.send(pending + packet)
            await exchange.wait(self.pause_s)
            pending = b""
        await exchange.send(pending)
        exchange.close()


@dataclass(frozen=True)
class Silence(faults.Fault):
    """A head and this much of the body, then nothing."""

    packets: Packets = field(repr=False)

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.send(head_bytes(200, self.packets.headers) + b"".join(self.packets.packets))
        await exchange.wait(None)


@dataclass(frozen=True)
class AsPlanned(faults.Fault):
    """No fault at all, for `Halting` to halt."""

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.play(exchange.plan())


@dataclass(frozen=True)
class Halting(faults.Fault):
    """Another fault, which goes on after its first packet once an event is set.

    What Caravan reads at once it judges at once: only a test whose client has had the beginning of an answer knows
    that the rest of it came later.
    """

    fault: faults.Fault = field(repr=False)
    go_on: threading.Event

    async def play(self, exchange: faults.Exchange) -> None:
        halting = _HaltingExchange(exchange, self.go_on)
        await self.fault.play(halting)
        exchange.close_after = halting.close_after


class _HaltingExchange(faults.Exchange):
    """The same exchange, whose second packet waits."""

    def __init__(self, exchange: faults.Exchange, go_on: threading.Event) -> None:
        super().__init__(exchange.connection, exchange.request)
        self._go_on, self._has_sent = go_on, False

    async def send(self, data: bytes) -> None:
        if self._has_sent:
            await self.wait(self._go_on)
        self._has_sent = True
        await super().send(data)


def is_streamed(request: RecordedRequest) -> bool:
    """Does a request of Ollama's own routes ask for a stream, by word or by silence?"""
    return bool(request.json().get("stream", True))


def kind_of(path: str) -> str:
    """The content type of a route's stream."""
    return SSE if path.startswith("/v1/") else NDJSON


def chunked(path: str, *payloads: bytes, last: bytes = LAST_CHUNK) -> Packets:
    """A stream in these chunks, one packet each."""
    return Packets((("Content-Type", kind_of(path)), CHUNKED), [*map(chunk, payloads), last])


def cut(data: bytes, pieces: int, seed: int) -> list[bytes]:
    """Bytes in about so many pieces, cut anywhere."""
    places = sorted(random.Random(seed).sample(range(1, len(data)), min(pieces, len(data) - 1)))
    return [data[start:end] for start, end in zip([0, *places], [*places, len(data)], strict=True)]
