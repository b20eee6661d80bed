"""Notice that a client hangs up while its request waits.

gunicorn's worker does not look at a connection while the application works on its request: a client that leaves
during a model's load would keep the GPU busy to the end. A watcher in the hub looks instead; it sees FIN and RST
within 1 ms (measured). nginx and HAProxy treat a half-closed client as gone too.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from gevent import getcurrent

from proxy_app.errors import ClientGone
from proxy_app.upstream.leaving import Leaving


class GunicornClient:
    """The client of one request; its body has been read. Under another server nothing is watched."""

    __slots__ = ("_reads_chunks", "_socket")

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._socket: socket.socket | None = environ.get("gunicorn.socket")
        self._reads_chunks = environ.get("SERVER_PROTOCOL") == "HTTP/1.1" and environ["REQUEST_METHOD"] != "HEAD"

    @property
    def chunked_socket(self) -> socket.socket | None:
        """The connection, where an answer without a length goes out in chunks (RFC 9112 §6.1)."""
        return self._socket if self._reads_chunks else None

    def abort(self) -> None:
        """Let the connection end in a reset (RFC 9293 §3.10.4): what comes before it may be lost, but is no end."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Raise `ClientGone` in the greenlet inside as soon as the client hangs up."""
        if self._socket is None:
            yield
            return
        watcher = Leaving(self._socket, partial(getcurrent().throw, ClientGone()))
        watcher.start()
        try:
            yield
        finally:
            watcher.close()
