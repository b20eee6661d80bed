"""Ways in which a backend misbehaves, each a small value that plays itself on an exchange.

Fault
 +-- before the answer   StallBeforeHeaders, EofBeforeHeaders, RstBeforeHeaders, SlowLoad
 +-- another answer      Status, Refuse503Busy, Error500, ErrorInFirstChunk, Redirect
 +-- broken framing      GarbageAfter200, ShortContentLength, LongContentLength,
 |                       DoubleContentLength, TrickledHeaders, HugeHeader
 +-- broken stream       StreamThen (with an Ending), CleanEndWithoutDone

Waiting ends when the client leaves or the fake stops, so no fault outlives its test.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from conformance.fakes.answers import (
    BUSY,
    JSON_UTF8,
    SSE,
    Answer,
    Header,
    dialect_of,
    error_answer,
    error_value,
    go_json,
    redirect_answer,
    runner_error,
)
from conformance.fakes.wire import LAST_CHUNK, Exchange, chunk, head_bytes

Until = threading.Event | float | None
GARBAGE = b"\x00\xffthis is neither a chunk nor JSON\r\n"


class Fault:
    """A deviation from the planned answer."""

    async def play(self, exchange: Exchange) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class StallBeforeHeaders(Fault):
    """Say nothing until seconds are over or an event is set (None: for ever), then answer."""

    until: Until = None

    async def play(self, exchange: Exchange) -> None:
        await exchange.wait(self.until)
        await exchange.play(exchange.plan())


@dataclass(frozen=True)
class SlowLoad(Fault):
    """A cold model: silence for `seconds`, then the usual answer."""

    seconds: float

    async def play(self, exchange: Exchange) -> None:
        await exchange.wait(self.seconds)
        await exchange.play(exchange.plan())


@dataclass(frozen=True)
class EofBeforeHeaders(Fault):
    """Take the request and close the connection."""

    async def play(self, exchange: Exchange) -> None:
        exchange.close()


@dataclass(frozen=True)
class RstBeforeHeaders(Fault):
    """Take the request and reset the connection."""

    async def play(self, exchange: Exchange) -> None:
        exchange.reset()


@dataclass(frozen=True)
class Status(Fault):
    """Any status, body and headers, sent as they are."""

    code: int
    body: bytes | str = b""
    headers: Sequence[Header] = (("Content-Type", JSON_UTF8),)

    async def play(self, exchange: Exchange) -> None:
        body = self.body.encode() if isinstance(self.body, str) else self.body
        await exchange.play(Answer(self.code, tuple(self.headers), body))


@dataclass(frozen=True)
class Refuse503Busy(Fault):
    """Ollama's full queue, in the dialect of the route."""

    async def play(self, exchange: Exchange) -> None:
        await exchange.play(error_answer(exchange.request.target, 503, BUSY))


@dataclass(frozen=True)
class Error500(Fault):
    """A runner that fails before the first token."""

    text: str = "boom"

    async def play(self, exchange: Exchange) -> None:
        await exchange.play(runner_error(exchange.request.target, self.text))


@dataclass(frozen=True)
class ErrorInFirstChunk(Fault):
    """Status 200, and then the first and only record is an error; the body ends cleanly."""

    text: str = "boom"

    async def play(self, exchange: Exchange) -> None:
        plan = exchange.plan()
        record = go_json(error_value(exchange.request.target, 500, self.text))
        if dict(plan.headers).get("Content-Type") == SSE:
            event = b"event: error\n" if dialect_of(exchange.request.target) == "anthropic" else b""
            record = event + b"data: " + record + b"\n"
        await exchange.play(Answer(200, plan.headers, record + b"\n", chunked=True))


@dataclass(frozen=True)
class Redirect(Fault):
    """A redirect, as a login page or a moved server in front of Ollama would send."""

    code: int = 302
    location: str = "http://127.0.0.1:9/elsewhere"

    async def play(self, exchange: Exchange) -> None:
        await exchange.play(redirect_answer(self.code, self.location))


@dataclass(frozen=True)
class GarbageAfter200(Fault):
    """A good head that promises chunks, then bytes that are none, then EOF."""

    garbage: bytes = GARBAGE

    async def play(self, exchange: Exchange) -> None:
        head = exchange.head(replace(exchange.plan(), chunked=True))
        await exchange.send(head + self.garbage)
        exchange.close()


async def send_with_lengths(exchange: Exchange, change: int, more: Sequence[int] = ()) -> None:
    """Send the planned body whole, with Content-Length off by `change` and more such headers."""
    plan = exchange.plan()
    body = plan.flat()
    lengths = [len(body) + change, *(len(body) + by for by in more)]
    headers = [*plan.headers, *(("Content-Length", str(max(0, n))) for n in lengths)]
    await exchange.send(head_bytes(plan.status, headers) + body)


@dataclass(frozen=True)
class ShortContentLength(Fault):
    """A Content-Length below the bytes sent: the rest poisons a reused connection."""

    by: int = 5

    async def play(self, exchange: Exchange) -> None:
        await send_with_lengths(exchange, -self.by)


@dataclass(frozen=True)
class LongContentLength(Fault):
    """A Content-Length above the bytes sent, then EOF: a body that was cut."""

    by: int = 5

    async def play(self, exchange: Exchange) -> None:
        await send_with_lengths(exchange, self.by)
        exchange.close()


@dataclass(frozen=True)
class DoubleContentLength(Fault):
    """Two Content-Length headers that disagree, the start of every smuggling story."""

    async def play(self, exchange: Exchange) -> None:
        await send_with_lengths(exchange, 0, more=(7,))


@dataclass(frozen=True)
class TrickledHeaders(Fault):
    """A good answer whose head comes byte by byte: a timeout per read never fires on it."""

    byte_delay_s: float = 0.01

    async def play(self, exchange: Exchange) -> None:
        plan = exchange.plan()
        body = plan.flat()
        length = ("Content-Length", str(len(body)))
        for byte in head_bytes(plan.status, [*plan.headers, length]):
            await exchange.send(bytes([byte]))
            await exchange.wait(self.byte_delay_s)
        await exchange.send(body)


@dataclass(frozen=True)
class HugeHeader(Fault):
    """A good answer with one header of `size_bytes`."""

    size_bytes: int = 1 << 20

    async def play(self, exchange: Exchange) -> None:
        plan = exchange.plan()
        header = ("X-Huge", "x" * self.size_bytes)
        await exchange.play(replace(plan, headers=(*plan.headers, header)))


class Ending:
    """How a stream goes on after its last good token."""

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class Rst(Ending):
    """The connection is reset. What was sent before arrives, if the client reads it in time."""

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        exchange.reset()


@dataclass(frozen=True)
class Eof(Ending):
    """The connection is closed without the last chunk, as a killed server's is."""

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        exchange.close()


@dataclass(frozen=True)
class HalfChunk(Ending):
    """A chunk is announced, half of it comes, then EOF."""

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        whole = chunk(b'{"model":"tiny","created_at":"2026-11-21T12:00:00Z","done":false}\n')
        await exchange.send(whole[: len(whole) // 2])
        exchange.close()


@dataclass(frozen=True)
class Stall(Ending):
    """Silence until seconds are over or an event is set (None: for ever), then EOF."""

    until: Until = None

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        await exchange.wait(self.until)
        exchange.close()


@dataclass(frozen=True)
class Garbage(Ending):
    """Bytes where a chunk should begin, then EOF."""

    garbage: bytes = GARBAGE

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        await exchange.send(self.garbage)
        exchange.close()


@dataclass(frozen=True)
class ErrorRecord(Ending):
    """What Ollama sends when its runner dies: an error line on native routes, a silent but
    clean end (plus one empty chunk) on /v1."""

    text: str = "model runner has unexpectedly stopped"

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        records: tuple[bytes, ...] = answer.stream.broken if answer.stream else ()
        if dialect_of(exchange.request.target) == "ollama":
            records = (go_json({"error": self.text}) + b"\n",)
        for record in records:
            await exchange.send(exchange.frame(record))
        await clean_end(exchange, answer)


@dataclass(frozen=True)
class CleanEnd(Ending):
    """The last chunk, without the final record of the dialect."""

    async def play(self, exchange: Exchange, answer: Answer) -> None:
        await clean_end(exchange, answer)


async def clean_end(exchange: Exchange, answer: Answer) -> None:
    """End a chunked body properly; a body with a length was sent whole already."""
    if not exchange.http_1_0:
        await exchange.send(LAST_CHUNK)


@dataclass(frozen=True)
class StreamThen(Fault):
    """Stream `n_tokens` good tokens (0: only the head), then break off by `then`.

    A non-streaming answer is cut in the middle of its body instead.
    """

    n_tokens: int
    then: Ending | type[Ending] = field(default_factory=Rst)

    async def play(self, exchange: Exchange) -> None:
        plan = exchange.plan()
        ending = self.then() if isinstance(self.then, type) else self.then
        if plan.stream is None:
            head = exchange.head(replace(plan, chunked=True))
            await exchange.send(head + exchange.frame(plan.body[: len(plan.body) // 2]))
        else:
            async for data in exchange.records(plan, tokens=self.n_tokens):
                await exchange.send(data)
        await ending.play(exchange, plan)


def CleanEndWithoutDone(n_tokens: int = 2) -> StreamThen:
    """Tokens, then a proper end of the body, but no final record (`done`, `[DONE]`, ...)."""
    return StreamThen(n_tokens, CleanEnd())
