"""The gateway that everybody writes first, with the standard library: it reads, parses, and writes anew."""

from __future__ import annotations

import gzip
import http.client
import itertools
import json
import posixpath
import socket
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

JOIN_S = 5.0


def rewritten(line: bytes) -> bytes:
    """A record as a parser understood it; what it does not know is left out."""
    if line.startswith((b":", b"id:")):
        return b""
    try:
        return json.dumps(json.loads(line)).encode() + b"\n"
    except ValueError:
        return line


class Handler(BaseHTTPRequestHandler):
    """Each line of it is in some gateway that is in use."""

    protocol_version = "HTTP/1.1"
    server: NaiveGateway
    # Kept between calls, as a client library's session would.
    cookies: dict[str, str] = {}  # noqa: RUF012

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def _serve(self) -> None:
        headers = {**self.headers, **self.cookies, "Accept-Encoding": "gzip", "Connection": "close"}
        body = self._body()
        path = posixpath.normpath(unquote(self.path.partition("?")[0]))
        backend = http.client.HTTPConnection("127.0.0.1", self.server.next_port())
        with suppress(OSError, http.client.HTTPException):
            headers |= {"Content-Length": str(len(body))}
            backend.request(self.command, path, body, headers)
            self._answer(backend.getresponse())
        backend.close()

    def _body(self) -> bytes:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            return json.dumps(json.loads(body)).encode()
        except ValueError:
            return body

    def _answer(self, response: http.client.HTTPResponse) -> None:
        try:
            data = response.read()
        except http.client.IncompleteRead as error:
            data = error.partial
        except ConnectionError:
            data = b""
        headers = {name.title(): value for name, value in response.getheaders()}
        if headers.pop("Content-Encoding", "") == "gzip":
            data = gzip.decompress(data)
        data = b"".join(rewritten(line) for line in data.splitlines(keepends=True))
        headers.pop("Transfer-Encoding", None)
        if "Set-Cookie" in headers:
            self.cookies["Cookie"] = headers["Set-Cookie"].partition(";")[0]
        self.send_response(response.status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class NaiveGateway(ThreadingHTTPServer):
    """The gateway on a port of its own."""

    def __init__(self, ports: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._ports = itertools.cycle(ports)
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="naive", daemon=True)

    def next_port(self) -> int:
        return next(self._ports)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client or a backend that went away."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.shutdown()
        self._thread.join(JOIN_S)
        self.server_close()
