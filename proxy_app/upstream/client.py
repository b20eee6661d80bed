"""Requests to backends: one connection pool for each, time limits, and errors of our own.

The relay and the show fetches use urllib3 directly: it keeps targets, header order and bodies as they are, keeps no
cookies, reads no proxy variables and follows no redirects.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Mapping
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

from proxy_app.domain import Backend
from proxy_app.errors import BadAnswer, ConnectionLost, Unreachable, UpstreamError, UpstreamTimeout
from proxy_app.upstream import headers as rules
from proxy_app.upstream.stream import Upstream

# More than a worker has clients: a pool never closes a connection for want of room.
POOL_SIZE = 2000
# Joining costs a copy of the body; above this that costs more than it saves.
JOINED_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it goes to any backend; prepared once, only the backend differs between attempts.

    Args:
        target: path and query.
        headers: the client's, unfiltered.
    """

    method: str
    target: str
    body: bytes = field(repr=False, default=b"")
    headers: tuple[tuple[str, str], ...] = field(repr=False, default=())
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest waits, in seconds: for a connection, for the first byte, between two pieces."""

    connect_s: float
    first_byte_s: float
    idle_s: float


class _Present(threading.local):
    """The call that a greenlet is making.

    Args:
        connected: did it open its connection? Set by the connection itself, read when the call fails.
        send_s: longest time for sending the request.
    """

    connected = False
    send_s = 60.0


_present = _Present()


class _Connection(HTTPConnection):
    """A connection that notes when it is opened, and sends a request's head together with a short body.

    http.client sends the two apart: two system calls, two packets, and a backend that wakes up twice.
    """

    _joins = False
    _head = b""

    def connect(self) -> None:
        _present.connected = True
        super().connect()

    def request(self, method: str, url: str, body: Any = None, *args: Any, **kwargs: Any) -> None:
        self._joins, self._head = isinstance(body, bytes) and len(body) <= JOINED_BYTES, b""
        super().request(method, url, body, *args, **kwargs)

    def send(self, data: Any) -> None:
        if self._joins:
            self._joins, self._head = False, data
            return
        head, self._head = self._head, b""
        if self.sock is None:
            self.connect()
        # urllib3 leaves the time limit of the connect in place, which a long body on a slow line would break.
        self.sock.settimeout(_present.send_s)
        super().send(head + data if head else data)


class _TLSConnection(_Connection, HTTPSConnection):
    """The same over TLS."""


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _TLSConnection


class UpstreamClient:
    """Sends calls to backends. Built after the fork; safe for any number of greenlets."""

    def __init__(self) -> None:
        self._pools: dict[str, _Pool | _TLSPool] = {}

    def send(self, backend: Backend, call: Call, limits: Limits) -> Upstream:
        """Send a call and wait for the head of the answer.

        A reused connection that dies before the answer begins gets one fresh try: the backend had
        closed it while it was idle.

        Raises:
            UpstreamError: one of its kinds, none of which shows an address to a client.
        """
        try:
            return self._send(backend, call, limits)
        except ConnectionLost:
            if _present.connected:
                raise
            return self._send(backend, call, limits)

    def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def _send(self, backend: Backend, call: Call, limits: Limits) -> Upstream:
        pool, prefix = self._pool(backend)
        _present.connected, _present.send_s = False, limits.first_byte_s
        try:
            response = pool.urlopen(
                call.method,
                prefix + call.target,
                body=call.body or None,
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
        return Upstream(response, limits.idle_s)

    def _pool(self, backend: Backend) -> tuple[_Pool | _TLSPool, str]:
        url = urlsplit(backend.url)
        pool = self._pools.get(backend.url)
        if pool is None:
            kind = _TLSPool if url.scheme == "https" else _Pool
            pool = kind(url.hostname or "", port=url.port, maxsize=POOL_SIZE, block=False)
            self._pools[backend.url] = pool
        return pool, url.path


def _sent_headers(backend: Backend, call: Call) -> Mapping[str, str]:
    sent: dict[str, Any] = dict(rules.to_upstream(call.headers, backend, call.request_id))
    present = {name.lower() for name in sent}
    # Nothing is invented on the client's behalf.
    for name in ("accept-encoding", "user-agent"):
        if name not in present:
            sent[name] = SKIP_HEADER
    if call.method != "GET" and not call.body:
        sent["Content-Length"] = "0"
    return sent


def _mapped(exc: Exception, backend: Backend, limits: Limits) -> UpstreamError:
    """Our own error for what the drivers raise."""
    if isinstance(exc, (NewConnectionError, ConnectTimeoutError, SSLError)):
        return Unreachable(f"{backend.name}: no connection: {exc}")
    if isinstance(exc, ReadTimeoutError):
        return UpstreamTimeout(f"{backend.name}: no answer within {limits.first_byte_s:g} s")
    cause = exc.args[1] if isinstance(exc, ProtocolError) and len(exc.args) > 1 else exc
    if isinstance(cause, OSError):
        return ConnectionLost(f"{backend.name}: the connection was lost before an answer: {cause}")
    return BadAnswer(f"{backend.name}: no HTTP answer: {cause}")
