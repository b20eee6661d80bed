"""Requests to backends: one connection pool for each, time limits, and errors of our own.

The relay and the show fetches use urllib3 directly: it keeps targets, header order and bodies as they are, keeps no
cookies, reads no proxy variables and follows no redirects.
"""

from __future__ import annotations

import errno
import http.client
import mmap
import queue
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
    SSLError,
)
from urllib3.util import SKIP_HEADER, Timeout

from proxy_app.domain import Backend, Buffer
from proxy_app.errors import BadAnswer, ConnectionLost, Unreachable, UpstreamError, UpstreamTimeout
from proxy_app.upstream import headers as rules
from proxy_app.upstream.nets import ANYWHERE, Nets
from proxy_app.upstream.stream import Upstream

# More than a worker has clients: a pool never closes a connection for want of room.
POOL_SIZE = 2000
# Joining costs a copy of the body; above this that costs more than it saves.
JOINED_BYTES = 64 << 10
MOST_INTERIM = 16
STALE_S = 1.0
_HEAD_LINE = re.compile(rb"(?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:|[ \t])[^\r\n]*\r?\n|\r?\n")


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it goes to any backend; prepared once, only the backend differs between attempts.

    Args:
        target: path and query.
        body: whole, so that it can be sent again; or pieces that come only once.
        headers: the client's, unfiltered.
        length: of a body in pieces, where it is known; else it goes out in chunks.
    """

    method: str
    target: str
    body: Buffer | Iterable[bytes] = field(repr=False, default=b"")
    headers: tuple[tuple[str, str], ...] = field(repr=False, default=())
    origin: rules.Origin = rules.NOBODY
    length: int | None = None

    @property
    def request_id(self) -> str:
        return self.origin.request_id

    @property
    def is_whole(self) -> bool:
        return isinstance(self.body, Buffer)


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest waits, in seconds: for a connection, for the first byte, between two pieces.

    `load_s`: how much of the wait for the first byte is for loading a model.
    """

    connect_s: float
    first_byte_s: float
    idle_s: float
    load_s: float = 0.0


class _Present(threading.local):
    """The call that a greenlet is making.

    Args:
        connected: did it open its connection? Set by the connection itself, read when the call fails.
        sent: has any of the request gone out?
        started_s: when it was begun, monotonic.
        send_s: longest time for sending the request.
        target: path and query, as they go out.
        unsent: was an answer there before all of the request was sent?
    """

    connected = False
    sent = False
    started_s = 0.0
    send_s = 60.0
    target = ""
    unsent = False


_present = _Present()


class _Head:
    """An answer's head, line by line. Python's own parser takes a bare CR for a line's end, and what is no header for
    the end of the head: bytes of a backend's would become headers, or a body (RFC 9112 §2.2, §5.1)."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.strict = False

    def readline(self, limit: int) -> bytes:
        line: bytes = self.file.readline(limit)
        if self.strict and not _HEAD_LINE.fullmatch(line):
            raise http.client.HTTPException(f"a header line that is none: {line[:40]!r}")
        return line

    def close(self) -> None:
        self.file.close()


class _Answer(http.client.HTTPResponse):
    """Skips interim answers (RFC 9110 §15.2): http.client takes a 103 for the answer, and any number of 100s."""

    fp: Any

    def begin(self) -> None:
        self.fp = _Head(self.fp)
        try:
            super().begin()
        finally:
            if self.fp is not None:
                self.fp = self.fp.file

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(MOST_INTERIM):
            self.fp.strict = False
            version, status, reason = super()._read_status()  # type: ignore[misc]
            self.fp.strict = True
            if not 100 <= status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException("one interim answer after the other")


class _Connection(HTTPConnection):
    """A connection that notes when it is opened, and sends a request's head together with a short body.

    http.client sends the two apart: two system calls, two packets, and a backend that wakes up twice.
    """

    response_class = _Answer
    nets = ANYWHERE
    _joins = False
    _in_pieces = False
    _head = b""

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        try:
            self.nets.check(connection)
        except OSError as exc:
            raise NewConnectionError(self, str(exc)) from exc
        return connection

    def connect(self) -> None:
        _present.connected = True
        super().connect()

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        self._joins, self._head = isinstance(body, bytes) and len(body) <= JOINED_BYTES, b""
        self._in_pieces = _present.unsent = body is not None and not isinstance(body, Buffer | memoryview)
        # urllib3 has encoded the target anew; a proxy does not change it (RFC 9110 §7.7).
        super().request(method, _present.target or url, body, *args, **kwargs)
        _present.unsent = False

    def send(self, data: Any) -> None:
        if self._joins:
            self._joins, self._head = False, data
            return
        head, self._head = self._head, b""
        if self.sock is None:
            self.connect()
        # urllib3 leaves the time limit of the connect in place, which a long body on a slow line would break.
        self.sock.settimeout(_present.send_s)
        _present.sent = True
        if self._in_pieces and _has_answered(self.sock):
            # What makes urllib3 stop sending and read the answer.
            raise BrokenPipeError(errno.EPIPE, "it has answered already")
        super().send(head + data if head else data)


class _TLSConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


# A connection whose other end has vanished (a machine that is off, a firewall that forgot it) breaks within a minute:
# what was sent has to be acknowledged, and a backend that thinks for long has to answer the kernel.
_ALIVE = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)


class Pool(urllib3.HTTPConnectionPool):
    """Connections to one backend, each of which leads where it may."""

    ConnectionCls = _Connection
    nets = ANYWHERE

    def __init__(self, host: str, port: int | None = None, **about: Any) -> None:
        super().__init__(host, port, socket_options=_ALIVE, **about)

    def _new_conn(self) -> Any:
        connection = super()._new_conn()
        connection.nets = self.nets  # type: ignore[attr-defined]
        return connection


class TLSPool(Pool, urllib3.HTTPSConnectionPool):
    """The same over TLS."""

    ConnectionCls = _TLSConnection


class UpstreamClient:
    """Sends calls to backends. Built after the fork; safe for any number of greenlets."""

    def __init__(self, nets: Nets = ANYWHERE) -> None:
        self._nets = nets
        self._pools: dict[str, Pool | TLSPool] = {}

    def send(self, backend: Backend, call: Call, limits: Limits) -> Upstream:
        """Send a call and wait for the head of the answer.

        A reused connection that dies before the answer begins gets one fresh try: the backend had
        closed it while it was idle. What can be sent only once goes out on a fresh one.

        Raises:
            UpstreamError: one of its kinds, none of which shows an address to a client.
        """
        if not call.is_whole:
            _drop_idle(self._pool(backend)[0])
        try:
            return self._send(backend, call, limits)
        except ConnectionLost as exc:
            # A connection that had gone stale dies at once; what dies later had reached the backend.
            late = time.monotonic() - _present.started_s > STALE_S or isinstance(exc.__cause__, TimeoutError)
            if _present.connected or late:
                raise
            # Its other idle connections are of the same age: the fresh try gets a fresh one.
            _drop_idle(self._pool(backend)[0])
            return self._send(backend, call, limits)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def _send(self, backend: Backend, call: Call, limits: Limits) -> Upstream:
        pool, prefix = self._pool(backend)
        _present.connected, _present.sent, _present.started_s = False, False, time.monotonic()
        _present.send_s, _present.target = limits.first_byte_s, prefix + call.target
        try:
            with _sendable(call.body) as body:
                response = pool.urlopen(
                    call.method,
                    prefix + call.target,
                    body=body,
                    headers=_sent_headers(backend, call),
                    retries=False,
                    redirect=False,
                    assert_same_host=False,
                    timeout=Timeout(connect=limits.connect_s, read=limits.first_byte_s),
                    preload_content=False,
                    decode_content=False,
                )
        except (HTTPError, OSError, http.client.HTTPException, ValueError) as exc:
            raise _mapped(exc, backend, limits) from exc
        finally:
            _present.target = ""
        upstream = Upstream(response, limits.idle_s, time.monotonic() - _present.started_s)
        upstream.is_reusable = not _present.unsent
        return upstream

    def _pool(self, backend: Backend) -> tuple[Pool | TLSPool, str]:
        url = urlsplit(backend.url)
        pool = self._pools.get(backend.url)
        if pool is None:
            kind = TLSPool if url.scheme == "https" else Pool
            pool = kind(url.hostname or "", url.port, maxsize=POOL_SIZE, block=False)
            pool.nets = self._nets
            self._pools[backend.url] = pool
        return pool, url.path


def _sent_headers(backend: Backend, call: Call) -> Mapping[str, str]:
    sent: dict[str, Any] = dict(rules.to_upstream(call.headers, backend, call.origin))
    present = {name.lower() for name in sent}
    # Nothing is invented on the client's behalf.
    for name in ("accept-encoding", "user-agent"):
        if name not in present:
            sent[name] = SKIP_HEADER
    if call.length is not None:
        sent["Content-Length"] = str(call.length)
    elif call.method not in ("GET", "HEAD") and not call.body:
        sent["Content-Length"] = "0"
    return sent


@contextmanager
def _sendable(body: Buffer | Iterable[bytes]) -> Iterator[Any]:
    """A body in the form that urllib3 sends without a copy; None where there is none."""
    if not isinstance(body, mmap.mmap):
        yield body or None
        return
    # It has a `read`, in small pieces, which urllib3 would prefer. A view that outlives this, in the frames of an
    # exception, would keep the file.
    with memoryview(body) as view:
        yield view


def _has_answered(connection: socket.socket) -> bool:
    """Is there something to read, or nobody any more? TLS has messages of its own, which say neither."""
    plain = getattr(connection, "_sock", None)
    if plain is None or isinstance(connection, ssl.SSLSocket):
        return False
    try:
        plain.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except OSError:
        # Nothing yet; or a broken connection, which the send that follows finds.
        return False
    return True


def _drop_idle(pool: Pool | TLSPool) -> None:
    """Close a pool's idle connections; those in use come back to it as before."""
    idle = pool.pool
    while idle is not None:
        try:
            connection = idle.get_nowait()
        except queue.Empty:
            break
        if connection is not None:
            connection.close()


def _mapped(exc: Exception, backend: Backend, limits: Limits) -> UpstreamError:
    """Our own error for what the drivers raise."""
    if isinstance(exc, (NewConnectionError, ConnectTimeoutError)) or (isinstance(exc, SSLError) and not _present.sent):
        return Unreachable(f"{backend.name}: no connection: {exc}")
    if isinstance(exc, ReadTimeoutError):
        return UpstreamTimeout(f"{backend.name}: no answer within {limits.first_byte_s:g} s")
    cause = exc.args[1] if isinstance(exc, ProtocolError) and len(exc.args) > 1 else exc
    if isinstance(cause, (OSError, SSLError)):
        return ConnectionLost(f"{backend.name}: the connection was lost before an answer: {cause}")
    return BadAnswer(f"{backend.name}: no HTTP answer: {cause}")
