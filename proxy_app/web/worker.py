"""gunicorn's gevent worker, which waits for idle connections at a stop: this one closes them.

Without it, `SIGTERM` takes gunicorn's whole grace time as soon as one client keeps a connection open.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from http import HTTPStatus
from typing import Any

import gevent
from gevent import Greenlet, getcurrent
from gunicorn import util
from gunicorn.glogging import Logger as GunicornLogger
from gunicorn.http import wsgi
from gunicorn.http.body import ChunkedReader
from gunicorn.http.errors import InvalidChunkSize
from gunicorn.http.unreader import SocketUnreader
from gunicorn.util import close_graceful
from gunicorn.workers.ggevent import GeventWorker

from proxy_app import telemetry
from proxy_app.dialects.errors import JSON, error_body
from proxy_app.errors import Stopping
from proxy_app.upstream.framing import chunk
from proxy_app.web import connection
from proxy_app.web.guards import request_id

LOOK_S = 0.05
REFUSALS = {
    414: "the request line is too long",
    417: "the only expectation that can be met is 100-continue",
    431: "the request has too many headers, or one that is too long",
    500: "Caravan failed; its log says why",
    501: "unknown transfer coding",
}
# How long before the end of the grace time what still runs is told to end.
LAST_WORDS_S = 3.0
# Connections beyond those that are served: enough to tell a crowd that there is no room.
REFUSED_AT_ONCE = 16
NO_ROOM = b"""HTTP/1.1 503 Service Unavailable\r
Content-Type: application/json; charset=utf-8\r
Content-Length: 49\r
Retry-After: 1\r
X-Request-Id: %b\r
Connection: close\r
\r
{"error":"Caravan has no connection left for it"}"""
# As Go bounds it: 16 hex digits.
LONGEST_CHUNK = (1 << 63) - 1
# What is read of a refused body, so that its client gets to read the refusal.
DRAIN_BYTES = 16 << 20
READ_BYTES = 65536


class JoinedResponse(wsgi.Response):  # type: ignore[misc]
    """Sends the head together with the first of the body: gunicorn's two sends wake the client twice."""

    head = b""
    headers_sent: bool

    def send_headers(self) -> None:
        if not self.headers_sent:
            lines = [*self.default_headers(), *(f"{name}: {value}\r\n" for name, value in self.headers), "\r\n"]
            self.head = "".join(lines).encode("latin-1")
            self.headers_sent = True

    def _emit_body(self, data: bytes) -> None:
        self._flush(chunk(data) if self.chunked else data)

    def close(self) -> None:
        self.send_headers()
        self._flush(b"0\r\n\r\n" if self.chunked else b"")

    def _flush(self, data: bytes) -> None:
        head, self.head = self.head, b""
        try:
            if head or data:
                self.sock.sendall(head + data)
        except TimeoutError:
            raise BrokenPipeError(errno.EPIPE, "the client takes nothing") from None


# gunicorn has no setting for this; its HTTP/2 code passes a class of its own through the same function.
wsgi.Response = JoinedResponse


_chunk_size = ChunkedReader.parse_chunk_size


def _bounded_chunk_size(self: Any, *args: Any, **kwargs: Any) -> Any:
    """gunicorn takes a size of any length, and then waits for that much."""
    size, rest = _chunk_size(self, *args, **kwargs)
    if size > LONGEST_CHUNK:
        raise InvalidChunkSize(size)
    return size, rest


ChunkedReader.parse_chunk_size = _bounded_chunk_size
# Room for 1 MiB, as gunicorn takes it, is new memory from the kernel for each read: four times the work of an upload
# (measured).
SocketUnreader.max_body_chunk = READ_BYTES


def _write_error(client: socket.socket, status: int, _reason: str, _why: str) -> None:
    """What gunicorn itself refuses, before there is a request: in words of ours that repeat none of the client's."""
    text = REFUSALS.get(status, "malformed request")
    body = error_body("ollama", status, text)
    head = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nContent-Type: {JSON}\r\nContent-Length: {len(body)}\r\n"
        f"X-Request-Id: {request_id('')}\r\nConnection: close\r\n\r\n"
    )
    client.sendall(head.encode() + body)


# Looked up by gunicorn at each refusal; it has no other way in.
util.write_error = _write_error


class Worker(GeventWorker):  # type: ignore[misc]
    """Knows which of its connections wait for a request, and closes those once it is told to stop."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._idle: set[socket.socket] = set()
        self._busy: set[Greenlet] = set()
        self._open = 0

    def handle(self, listener: Any, client: socket.socket, addr: Any) -> None:
        if self._open >= self.cfg.worker_connections - REFUSED_AT_ONCE:
            _refuse(client)
            return
        self._open += 1
        self._idle.add(client)
        try:
            super().handle(listener, client, addr)
        finally:
            self._idle.discard(client)
            self._busy.discard(getcurrent())
            self._open -= 1

    def handle_request(self, listener_name: Any, req: Any, sock: socket.socket, addr: Any) -> None:
        self._idle.discard(sock)
        self._busy.add(getcurrent())
        # For the body that comes in, and for what goes out; the wait for the next request has its own limit.
        sock.settimeout(self.wsgi.extensions["proxy"].settings.client_timeout_s)
        connection.serving(req)
        # An answer says the version of whoever gives it (RFC 9110 §6.2).
        req.version = min(req.version, (1, 1))
        try:
            super().handle_request(listener_name, req, sock, addr)
        except Stopping:
            # Whatever has gone out, gunicorn would write a 500 behind it.
            _shut(sock)
            raise StopIteration from None
        except StopIteration:
            if req.must_close:
                # Unread bytes of the request would turn the close into a reset, which can overtake the answer.
                close_graceful(sock, max_drain=DRAIN_BYTES)
            raise
        sock.settimeout(None)
        self._busy.discard(getcurrent())
        self._idle.add(sock)

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        # A signal handler must not wait: a greenlet closes what is idle now and what becomes so later.
        gevent.spawn(self._drain)

    def _drain(self) -> None:
        app = getattr(self, "wsgi", None)
        if app is not None:
            app.extensions["proxy"].draining = True
        last_s = time.monotonic() + max(self.cfg.graceful_timeout - LAST_WORDS_S, self.cfg.graceful_timeout / 2)
        while True:
            if time.monotonic() > last_s:
                # The arbiter's SIGKILL would end them without a word, and their leases only with time.
                for greenlet in self._busy:
                    greenlet.kill(Stopping(), block=False)
                self._busy.clear()
            for client in [each for each in self._idle if not _has_request(each)]:
                self._idle.discard(client)
                _shut(client)
            gevent.sleep(LOOK_S)
            if not self._open:
                break
        # gunicorn's own loop would look once a second, twice.
        hub = gevent.get_hub()
        hub.loop.run_callback(hub.parent.throw, SystemExit(0))


def _refuse(client: socket.socket) -> None:
    """Say that there is no room, without waiting for a request that may never come."""
    try:
        client.settimeout(1)
        client.sendall(NO_ROOM % request_id("").encode())
        # What has come already and is not read would turn the close into a reset, which can overtake the answer.
        client._sock.recv(READ_BYTES, socket.MSG_DONTWAIT)  # type: ignore[attr-defined]
    except OSError:
        pass
    client.close()


def _has_request(client: socket.socket) -> bool:
    """Has a request come that nobody has read yet? It is answered before its connection is closed."""
    try:
        return bool(client._sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))  # type: ignore[attr-defined]
    except OSError:
        return False


def _shut(client: socket.socket) -> None:
    try:
        # The plain socket under gevent's, whose own shutdown would wake the reader with an error instead of an end.
        client._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    except OSError:
        # It went by itself.
        return


class Logger(GunicornLogger):  # type: ignore[misc]
    """gunicorn's log, in the same lines as everything else."""

    def setup(self, cfg: Any) -> None:
        super().setup(cfg)
        telemetry.configure(os.environ.get("CARAVAN_LOG_LEVEL") or "info")
        self.error_log.handlers[:] = []
        self.error_log.propagate = True
