"""What the suite's backends do in its rows, beside the faults that conformance.fakes has."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from conformance.fakes.answers import NDJSON, Answer, Header
from conformance.fakes.faults import Ending, Fault
from conformance.fakes.recorded import RecordedRequest
from conformance.fakes.wire import LAST_CHUNK, Exchange, chunk, head_bytes

FLOOD_PIECE = 65536


@dataclass(frozen=True)
class Raw(Fault):
    """Exactly these bytes, head and all; then the connection is closed, unless it is kept."""

    data: bytes
    keep: bool = False

    async def play(self, exchange: Exchange) -> None:
        await exchange.send(self.data)
        if not self.keep:
            exchange.close()


@dataclass(frozen=True)
class HalfBody(Fault):
    """The planned answer with its right Content-Length, but only half of the body; then EOF."""

    async def play(self, exchange: Exchange) -> None:
        plan = exchange.plan()
        body = plan.flat()
        await exchange.send(head_bytes(plan.status, [*plan.headers, ("Content-Length", str(len(body)))]))
        await exchange.send(body[: len(body) // 2])
        exchange.close()


@dataclass(frozen=True)
class Pieces(Fault):
    """A chunked answer in given pieces, each sent by itself.

    Args:
        pause_s: between two pieces.
        gate: the second piece waits until this is set.
        trailer: lines after the last chunk.
        sent_at: when each piece was sent, by time.monotonic.
    """

    pieces: Sequence[bytes]
    content_type: str = NDJSON
    headers: Sequence[Header] = ()
    pause_s: float = 0.0
    gate: threading.Event | None = None
    trailer: bytes = b""
    sent_at: list[float] = field(default_factory=list)

    async def play(self, exchange: Exchange) -> None:
        head = [("Content-Type", self.content_type), *self.headers, ("Transfer-Encoding", "chunked")]
        await exchange.send(head_bytes(200, head))
        for number, piece in enumerate(self.pieces):
            if number == 1 and self.gate is not None:
                await exchange.wait(self.gate)
            elif number:
                await exchange.wait(self.pause_s)
            self.sent_at.append(time.monotonic())
            await exchange.send(chunk(piece))
        await exchange.send(b"0\r\n" + self.trailer + b"\r\n" if self.trailer else LAST_CHUNK)


@dataclass(frozen=True)
class Later(Ending):
    """Another ending, once the gate is open."""

    gate: threading.Event
    then: Ending

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        await exchange.wait(self.gate)
        await self.then.play(exchange, answer)


@dataclass
class Flood(Fault):
    """A stream of `size_bytes`, as fast as its reader takes it; `sent_bytes` tells how far it is."""

    size_bytes: int
    sent_bytes: int = 0

    async def play(self, exchange: Exchange) -> None:
        await exchange.send(head_bytes(200, [("Content-Type", NDJSON), ("Transfer-Encoding", "chunked")]))
        line = b'{"model":"conform","message":{"role":"assistant","content":"%s"},"done":false}\n'
        piece = chunk(line % (b"x" * FLOOD_PIECE))
        while self.sent_bytes < self.size_bytes:
            await exchange.send(piece)
            self.sent_bytes += len(piece)
        await exchange.send(chunk(b'{"model":"conform","message":{},"done":true}\n') + LAST_CHUNK)


@dataclass
class BackToTheGateway(Fault):
    """A backend that is the gateway itself: what comes in goes back to it, at most `limit` times."""

    host: str
    port: int
    path: str
    limit: int
    rounds: int = 0

    async def play(self, exchange: Exchange) -> None:
        self.rounds += 1
        if self.rounds >= self.limit:
            await exchange.play(exchange.plan())
            return
        try:
            await self._round(exchange)
        except OSError:
            exchange.reset()
        exchange.close()

    async def _round(self, exchange: Exchange) -> None:
        reader, writer = await asyncio.open_connection(self.host, self.port)
        try:
            writer.write(self._forwarded(exchange.request))
            while data := await reader.read(65536):
                await exchange.send(data)
        finally:
            writer.close()

    def _forwarded(self, request: RecordedRequest) -> bytes:
        own = {"host", "connection", "content-length", "transfer-encoding"}
        kept = [(name, value) for name, value in request.headers if name.lower() not in own]
        kept += [("Host", f"{self.host}:{self.port}"), ("Connection", "close")]
        kept += [("Content-Length", str(len(request.body)))]
        lines = [f"{request.method} {self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in kept)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + request.body
