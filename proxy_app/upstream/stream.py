"""A backend's answer: its head, and its body in pieces as they come.

Once an answer streams, `pump` moves it from the backend's socket to the client's inside the hub's own callbacks: one
read and one write for each piece, no switch between greenlets. That is what makes a token cheap.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Callable
from functools import partial
from typing import cast

import gevent
import gevent.socket
import urllib3
from gevent.event import AsyncResult

from proxy_app.errors import BadAnswer, ClientGone, Interrupted, Silent, Truncated, UpstreamError
from proxy_app.upstream.framing import Chunked, Framing, Sized, chunk, framing_of
from proxy_app.upstream.headers import clean_reason
from proxy_app.upstream.leaving import Leaving
from proxy_app.upstream.records import LastRecord

READ_BYTES = 65536
Change = Callable[[bytes], bytes]
READABLE, WRITABLE = 1, 2
# How often silence is judged per idle time: it ends a stream by one such part late at most.
LOOKS = 10


class Upstream:
    """One answer of a backend.

    Owned by: the request that asked. `close` gives the connection back where the answer is complete and closes it
    where it is not, which makes Ollama stop generating. `waited_s`: how long its head took to come. `is_reusable`: not
    where the backend waits for the rest of a request.
    """

    def __init__(self, response: urllib3.BaseHTTPResponse, idle_s: float, waited_s: float = 0.0) -> None:
        self._response = response
        self.waited_s = waited_s
        self.is_reusable = True
        # urllib3 has no public way to read a body's bytes as they stand on the wire; its own chunk reader
        # drops what it has of a chunk that is cut, and costs more than the rest of a token together.
        self._http = cast(http.client.HTTPResponse, response._fp)  # type: ignore[attr-defined]
        self._idle_s = idle_s
        self.status = response.status
        self.reason = clean_reason(response.reason or "")
        self.headers: list[tuple[str, str]] = list(response.headers.iteritems())
        try:
            if self.status < 200:
                raise BadAnswer(f"{self.status} is no answer yet, and nobody asked for one")
            self._framing = framing_of(self.status, self.headers)
            self._socket = _socket_of(self._http)
        except BaseException:
            self.close()
            raise
        if self._socket is not None:
            self._socket.settimeout(idle_s)

    @property
    def content_type(self) -> str:
        return next((value for name, value in self.headers if name.lower() == "content-type"), "")

    @property
    def readable_type(self) -> str:
        """Its content type where its bytes can be looked into and added to; "" where they are compressed."""
        codings = {value.strip().lower() for name, value in self.headers if name.lower() == "content-encoding"}
        return "" if codings - {"identity", ""} else self.content_type

    @property
    def length(self) -> int | None:
        """The body's length where that is how it ends."""
        return self._framing.length if isinstance(self._framing, Sized) else None

    @property
    def is_complete(self) -> bool:
        return self._framing.done

    def read(self) -> bytes:
        """The next piece of the body, as soon as there is one; b"" at its end.

        Raises:
            Truncated: the body was cut, broke its framing, or was silent for too long.
        """
        while not self._framing.done:
            if self._framing.failure is not None:
                raise self._framing.failure
            try:
                data = self._http.fp.read1(READ_BYTES)
            except TimeoutError as exc:
                raise Silent(self._idle_s) from exc
            except OSError as exc:
                raise Truncated(f"the connection broke: {exc}") from exc
            payload = self._framing.feed(data) if data else self._framing.end()
            if payload:
                return payload
        return b""

    def read_up_to(self, limit: int, within_s: float | None = None) -> bytes:
        """The body up to about `limit` bytes; `is_complete` tells whether that is all.

        Args:
            within_s: how long all of it may take.

        Raises:
            Truncated: see `read`; also where it takes too long.
        """
        pieces: list[bytes] = []
        size = 0
        deadline = None if within_s is None else time.monotonic() + within_s
        while size <= limit and (piece := self.read()):
            if deadline is not None and time.monotonic() > deadline:
                raise Truncated(f"not complete after {within_s:g} s")
            pieces.append(piece)
            size += len(piece)
        return b"".join(pieces)

    def can_pump(self, client: socket.socket) -> bool:
        """Are both ends plain sockets of the hub? TLS keeps bytes of its own that no watcher sees."""
        return type(self._socket) is gevent.socket.socket and type(client) is gevent.socket.socket

    def pump(self, client: socket.socket, record: LastRecord, change: Change | None = None) -> None:
        """Move the rest of the body to a client that reads chunks.

        Args:
            record: is told of all that came.
            change: what is done to each piece before it goes out.

        Raises:
            Truncated: as `read`.
            ClientGone: the client hung up, or took nothing for as long as a backend may be silent.
        """
        assert self._socket is not None, "can_pump was not asked"
        pump = _Pump(self._socket, client, self._framing, self._idle_s, record)
        pump.change = change
        pump.run()

    def close(self) -> None:
        """Give the connection back, or close it; idempotent."""
        response, framing = self._response, getattr(self, "_framing", None)
        complete = framing is not None and framing.done and framing.failure is None
        if complete and self.is_reusable and not self._http.will_close and not self._has_more():
            # The body was read past http.client's back; this marks it read without touching the socket.
            self._http.close()
            response.release_conn()
        else:
            response.close()

    def _has_more(self) -> bool:
        """Did something come behind an answer that has no body? It would be the beginning of the next answer."""
        if self.length != 0 or self._http.fp is None or self._socket is None:
            return False
        self._socket.setblocking(False)
        try:
            return bool(self._http.fp.peek(1))
        except OSError:
            return False
        finally:
            self._socket.settimeout(self._idle_s)


def _socket_of(answer: http.client.HTTPResponse) -> socket.socket | None:
    """The socket that an answer is read from; None where the answer has no body.

    An answer that ends with its connection has taken the socket away from the connection object.
    """
    raw = getattr(answer.fp, "raw", None)
    return cast("socket.socket | None", getattr(raw, "_sock", None))


class _Pump:
    """Moves one body between two sockets. Lives in the hub's callbacks; only `run` waits.

    Back pressure: what the client does not take stops the reading until it does.
    """

    def __init__(
        self, source: socket.socket, client: socket.socket, framing: Framing, idle_s: float, record: LastRecord
    ) -> None:
        self._source, self._client, self._framing, self._idle_s = source, client, framing, idle_s
        self._note = record.note_chunk
        self.change: Change | None = None
        self._feed = framing.feed_chunk if isinstance(framing, Chunked) else self._feed_and_frame
        self._pending = b""
        self._moves = 0
        self._result: AsyncResult[BaseException | None] = AsyncResult()
        loop = gevent.get_hub().loop
        self._readable = loop.io(source.fileno(), READABLE)
        self._writable = loop.io(client.fileno(), WRITABLE)
        self._hung_up = Leaving(client, partial(self._finish, ClientGone()))

    def run(self) -> None:
        if self._framing.failure is not None:
            raise self._framing.failure
        client_s = self._client.gettimeout()
        self._source.setblocking(False)
        self._client.setblocking(False)
        try:
            self._readable.start(self._on_readable)
            self._hung_up.start()
            failure = self._wait()
        except Interrupted as exc:
            exc.cuts_a_piece = bool(self._pending)
            raise
        finally:
            for watcher in (self._readable, self._writable, self._hung_up):
                watcher.stop()
                watcher.close()
            self._client.settimeout(client_s)
            self._source.settimeout(self._idle_s)
        if failure is not None:
            raise failure

    def _wait(self) -> BaseException | None:
        """Wait for the end; silence is judged some times per idle time, so that a token costs no timer."""
        quiet = 0
        while True:
            seen = self._moves
            try:
                failure: BaseException | None = self._result.get(timeout=self._idle_s / LOOKS)
                return failure
            except gevent.Timeout:
                quiet = quiet + 1 if self._moves == seen else 0
                if quiet == LOOKS:
                    return ClientGone() if self._pending else Silent(self._idle_s)

    def _on_readable(self) -> None:
        try:
            data = self._source.recv(READ_BYTES)
            self._moves += 1
            if data:
                self._pass_on(data)
            else:
                self._framing.end()
        except BlockingIOError:
            return
        except UpstreamError as exc:
            self._finish(exc)
        except OSError as exc:
            self._finish(Truncated(f"the connection broke: {exc}"))
        else:
            self._settle()

    def _pass_on(self, data: bytes) -> None:
        frame = self._feed(data)
        if frame:
            self._note(frame)
            if self.change is not None:
                frame = self._changed(frame, self.change)
            if frame:
                self._write(frame)

    @staticmethod
    def _changed(frame: bytes, change: Change) -> bytes:
        payload = frame[frame.find(b"\n") + 1 : -2]
        changed = change(payload)
        if changed is payload:
            return frame
        return chunk(changed) if changed else b""

    def _settle(self) -> None:
        """Finish once the body is complete, or broken, and all of it has gone out."""
        framing = self._framing
        if (framing.done or framing.failure is not None) and not self._pending:
            self._finish(framing.failure)

    def _write(self, frame: bytes) -> None:
        try:
            sent = self._client.send(frame)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._finish(ClientGone())
            return
        if sent < len(frame):
            self._pending = frame[sent:]
            self._readable.stop()
            self._writable.start(self._on_writable)

    def _on_writable(self) -> None:
        pending, self._pending = self._pending, b""
        self._moves += 1
        self._writable.stop()
        self._write(pending)
        if self._pending or self._result.ready():
            return
        self._settle()
        if not self._result.ready():
            self._readable.start(self._on_readable)

    def _finish(self, failure: BaseException | None) -> None:
        self._readable.stop()
        self._hung_up.stop()
        if not self._result.ready():
            self._result.set(failure)

    def _feed_and_frame(self, data: bytes) -> bytes:
        payload = self._framing.feed(data)
        return chunk(payload) if payload else b""
