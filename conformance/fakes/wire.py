"""HTTP/1.1 as Ollama's Go server speaks it, on asyncio: requests in, planned answers out.

One event loop serves all connections of a fake: two hundred paced streams would cost two hundred
threads more than two cores have. A peer that leaves is seen by the loop at once, also in a stall.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Iterable
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from conformance.fakes.answers import Answer, Header
from conformance.fakes.recorded import BadRequest, RecordedRequest, body_from, parse_head

if TYPE_CHECKING:
    from conformance.fakes.server import Server

# How often a wait on a test's threading.Event looks at it, in seconds: well below any deadline.
EVENT_TICK_S = 0.003
LAST_CHUNK = b"0\r\n\r\n"
NO_BODY_STATUS = frozenset({204, 304})


@lru_cache(maxsize=4)
def date_header(second: int) -> str:
    return formatdate(second, usegmt=True)


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def head_bytes(status: int, headers: Iterable[Header]) -> bytes:
    """A status line and headers, ready to send."""
    try:
        reason = HTTPStatus(status).phrase
    except ValueError:
        reason = "Unknown"
    lines = [f"HTTP/1.1 {status} {reason}", *(f"{name}: {value}" for name, value in headers)]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Exchange:
    """One request and its answer; what answers and faults act on. Lives on the server's loop."""

    def __init__(self, connection: Connection, request: RecordedRequest) -> None:
        self.connection = connection
        self.request = request
        self.server = connection.server
        self.http_1_0 = request.version == "HTTP/1.0"
        wish = (request.header("connection") or "").lower()
        self.close_after = wish == "close" or (self.http_1_0 and wish != "keep-alive")

    def plan(self) -> Answer:
        """What the fake would answer without any fault."""
        return self.server.answer(self.request)

    async def send(self, data: bytes) -> None:
        """Write once, after a pause of the whole fake is over."""
        if not self.server.running.is_set():
            await self.server.running.wait()
        self.connection.transport.write(data)
        if not self.connection.writable.is_set():
            await self.connection.writable.wait()

    async def wait(self, until: threading.Event | float | None) -> None:
        """Stall for seconds, until a test sets its event, or (None) for ever."""
        if isinstance(until, threading.Event):
            while not until.is_set():
                await asyncio.sleep(EVENT_TICK_S)
        elif until is None:
            await asyncio.get_running_loop().create_future()
        else:
            await asyncio.sleep(until)

    def headers_of(self, answer: Answer) -> list[Header]:
        """All headers in Go's order: the handler's own sorted, then Date, then the framing."""
        headers = sorted(answer.headers)
        names = {name.lower() for name, _ in headers}
        if self.close_after and "connection" not in names:
            headers.append(("Connection", "close"))
        headers.append(("Date", date_header(int(time.time()))))
        if answer.streamed and not self.http_1_0:
            headers.append(("Transfer-Encoding", "chunked"))
        elif not answer.streamed and answer.status not in NO_BODY_STATUS:
            headers.append(("Content-Length", str(len(answer.body))))
        return headers

    def head(self, answer: Answer) -> bytes:
        if answer.streamed and self.http_1_0:
            # Without chunks only the end of the connection ends such a body.
            self.close_after = True
        return head_bytes(answer.status, self.headers_of(answer))

    def frame(self, data: bytes) -> bytes:
        return data if self.http_1_0 else chunk(data)

    async def play(self, answer: Answer) -> None:
        """Send an answer as Ollama would."""
        if answer.delay_s:
            await asyncio.sleep(answer.delay_s)
        if self.request.method == "HEAD":
            await self.send(self.head(answer))
        elif answer.stream is not None:
            await self.play_stream(answer)
        elif answer.streamed:
            last = b"" if self.http_1_0 else LAST_CHUNK
            await self.send(self.head(answer) + self.frame(answer.body) + last)
        else:
            await self.send(self.head(answer) + answer.body)

    async def play_stream(self, answer: Answer) -> None:
        """Send head and first record together, then record by record, then the end."""
        async for data in self.records(answer):
            await self.send(data)
        if not self.http_1_0:
            await self.send(LAST_CHUNK)

    async def records(self, answer: Answer, tokens: int | None = None) -> Any:
        """Yield a stream's framed records at its pace, the head with the first one.

        With `tokens` it stops after that many tokens and leaves the epilogue out.
        """
        stream = answer.stream
        assert stream is not None
        pending = self.head(answer) + b"".join(self.frame(r) for r in stream.prologue)
        if tokens == 0:
            yield self.head(answer)
            return
        async for token in self.paced(stream.tokens, stream.delay_s, stream.first_delay_s):
            yield pending + self.frame(token)
            pending = b""
            if tokens is not None:
                tokens -= 1
                if tokens == 0:
                    return
        for record in stream.epilogue if tokens is None else ():
            yield pending + self.frame(record)
            pending = b""
        if pending:
            yield pending

    async def paced(self, tokens: Iterable[bytes], delay_s: float, first_s: float) -> Any:
        """Yield tokens on a fixed schedule, so that late wake-ups do not add up."""
        loop = asyncio.get_running_loop()
        due = loop.time() + first_s
        for token in tokens:
            # sleep(0) also when late: it lets other streams and a hang-up in.
            await asyncio.sleep(max(0.0, due - loop.time()))
            yield token
            due += delay_s

    def close(self) -> None:
        """End the connection after what was written (FIN)."""
        self.close_after = True

    def reset(self) -> None:
        """End the connection with an RST; what was not sent yet is lost."""
        self.close_after = True
        self.connection.reset()


class Connection(asyncio.Protocol):
    """One accepted connection: parses requests and plays one exchange at a time."""

    transport: asyncio.Transport

    def __init__(self, server: Server) -> None:
        self.server = server
        self.writable = asyncio.Event()
        self.writable.set()
        self._buffer = bytearray()
        self._waiting_head: RecordedRequest | None = None
        self._task: asyncio.Task[None] | None = None
        self._request: RecordedRequest | None = None
        self._served_before = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        # One token is one packet; asyncio sets this only where it made the socket itself.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.server.connections.add(self)
        if not self.server.accepting:
            # It was in the accept queue when the fake was killed.
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.connections.discard(self)
        self._peer_left()

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def eof_received(self) -> bool:
        """Treat a half-close as a hang-up, as Go's server does; False closes the transport."""
        self._peer_left()
        return False

    def _peer_left(self) -> None:
        """Cancel the running exchange; one that we ended ourselves was not left by its peer."""
        if self._task is None or self._request is None or self._task.done():
            return
        if not self.server.dying:
            self._request.left()
        self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._advance()

    def _advance(self) -> None:
        """Start the next exchange if none runs and a whole request is here."""
        if self._task is not None or not self._buffer or self.transport.is_closing():
            return
        try:
            request = self._next_request()
        except BadRequest as exc:
            self._refuse(str(exc))
            return
        if request is not None:
            self._request = request
            # Here, not in the task: a task cancelled before its first step would leave no trace.
            self.server.began(request)
            self._task = asyncio.get_running_loop().create_task(self._serve(request))
            self._task.add_done_callback(self._served)

    def _next_request(self) -> RecordedRequest | None:
        if self._waiting_head is None:
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return None
            self._waiting_head = parse_head(bytes(self._buffer[:end]))
            del self._buffer[: end + 4]
            self._continue(self._waiting_head)
        found = body_from(self._waiting_head, self._buffer)
        if found is None:
            return None
        request, self._waiting_head = self._waiting_head, None
        request.body, used = found
        del self._buffer[:used]
        request.at = time.monotonic()
        self._served_before += 1
        request.nth = self._served_before
        return request

    def _continue(self, request: RecordedRequest) -> None:
        if (request.header("expect") or "").lower() == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _refuse(self, text: str) -> None:
        """Answer broken bytes as Go's server does, and close."""
        head = head_bytes(400, [("Content-Type", "text/plain; charset=utf-8"), ("Connection", "close")])
        self.transport.write(head + f"400 Bad Request: {text}".encode())
        self.transport.close()

    async def _serve(self, request: RecordedRequest) -> None:
        exchange = Exchange(self, request)
        await self.server.respond(exchange)
        if exchange.close_after:
            self.transport.close()

    def _served(self, task: asyncio.Task[None]) -> None:
        assert self._request is not None
        self.server.ended(self._request)
        self._request.ended.set()
        self._task = self._request = None
        if not task.cancelled() and task.exception() is not None:
            self.server.failed(task.exception())
            self.transport.abort()
        elif not task.cancelled():
            self._advance()

    def reset(self) -> None:
        """Close with an RST (SO_LINGER on, 0 seconds)."""
        raw = self.transport.get_extra_info("socket")
        if raw is not None and raw.fileno() >= 0:
            linger = struct.pack("ii", 1, 0)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.transport.abort()
