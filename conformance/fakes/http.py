"""A tiny HTTP client on a raw socket: it sends exact bytes and tells how an answer ended."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import urlsplit

from conformance.fakes.raw import reset

Ended = Literal["complete", "cut"]
# Bound in seconds for any single read; a test that needs another says so.
TIMEOUT_S = 10.0


@dataclass
class RawResponse:
    """An answer as it came over the wire.

    Args:
        body: without chunk framing; of a cut answer, what arrived.
        ended: `complete` when the framing says the body was whole (last chunk, Content-Length,
            or a close where that is the framing), `cut` otherwise.
        reset: the connection ended with an RST.
    """

    status: int
    headers: list[tuple[str, str]]
    body: bytes = b""
    ended: Ended = "cut"
    reset: bool = False
    chunks: list[bytes] = field(default_factory=list)
    head: bytes = b""

    def header(self, name: str) -> str | None:
        wanted = name.lower()
        return next((value for key, value in self.headers if key.lower() == wanted), None)

    def all(self, name: str) -> list[str]:
        """The values of a header that may come several times."""
        return [value for key, value in self.headers if key.lower() == name.lower()]

    @property
    def content_type(self) -> str | None:
        return self.header("content-type")

    def json(self) -> Any:
        return json.loads(self.body)

    def lines(self) -> list[Any]:
        """The records of an NDJSON body."""
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def complete(self) -> bool:
        return self.ended == "complete"


class CutOff(Exception):
    """The peer closed or reset the connection in the middle of an answer."""


class NotHttp(Exception):
    """What the peer sent is no answer."""


class RawClient:
    """One connection, kept open over several requests.

    with RawClient(fake.url) as client:
        answer = client.request("POST", "/api/chat", json={"model": "tiny", "messages": []})
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self.host = parts.netloc
        port = parts.port or 80
        self.sock = socket.create_connection((parts.hostname or "", port), timeout_s)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = b""
        self._was_reset = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close with a FIN (or an RST where unread bytes wait, as the kernel does)."""
        self.sock.close()

    def abort(self) -> None:
        """Close with an RST."""
        if self.sock.fileno() >= 0:
            reset(self.sock)

    # --- sending -------------------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def send_request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Send a well-formed request; Host and Content-Length are set unless given."""
        given = dict(headers or {})
        names = {name.lower() for name in given}
        if "host" not in names:
            given["Host"] = self.host
        if body is not None and not names & {"content-length", "transfer-encoding"}:
            given["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{key}: {value}" for key, value in given.items())]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + (body or b""))

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> RawResponse:
        """Send a request and read its whole answer."""
        given = dict(headers or {})
        if json is not None:
            body = encode_json(json)
            given.setdefault("Content-Type", "application/json")
        self.send_request(method, path, body, given)
        return self.read_response(head_only=method == "HEAD")

    # --- reading -------------------------------------------------------------------------------

    def _fill(self) -> None:
        try:
            data = self.sock.recv(65536)
        except ConnectionError as exc:
            self._was_reset = True
            raise CutOff("reset") from exc
        if not data:
            raise CutOff("closed")
        self._buffer += data

    def read_until(self, mark: bytes) -> bytes:
        """Read up to and including a mark."""
        while mark not in self._buffer:
            self._fill()
        end = self._buffer.index(mark) + len(mark)
        data, self._buffer = self._buffer[:end], self._buffer[end:]
        return data

    def read_exactly(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def read_head(self) -> RawResponse:
        """Read a status line and headers; interim 1xx answers are skipped.

        Raises:
            CutOff: when the connection ends before the head is complete.
            NotHttp: when something else comes.
            TimeoutError: when nothing comes.
        """
        head = self.read_until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        if not first.startswith("HTTP/1."):
            raise NotHttp(f"no status line: {first[:60]!r}")
        status = int(first.split(" ", 2)[1])
        if 100 <= status < 200:
            return self.read_head()
        pairs = [line.partition(":") for line in lines]
        headers = [(name, value.strip()) for name, _, value in pairs]
        return RawResponse(status, headers, head=head)

    def read_response(self, head_only: bool = False, begun: threading.Event | None = None) -> RawResponse:
        """Read an answer to its end or to where it is cut; a cut head raises CutOff. Args: begun: as `read_body`."""
        response = self.read_head()
        if head_only or response.status in (204, 304):
            response.ended = "complete"
            return response
        return self.read_body(response, begun)

    def read_body(self, response: RawResponse, begun: threading.Event | None = None) -> RawResponse:
        """Read what follows a head, to its end or to where it is cut.

        Args:
            begun: is set as soon as something of the body is there.
        """
        pieces: list[bytes] = []
        try:
            for piece in self.iter_body(response):
                pieces.append(piece)
                if begun is not None:
                    begun.set()
            response.ended = "complete"
        except CutOff:
            response.reset = self._was_reset
        response.body = b"".join(pieces)
        return response

    def iter_body(self, response: RawResponse) -> Iterator[bytes]:
        """Yield the body as it comes; returns at its proper end, raises CutOff at any other.

        Bytes of an unfinished chunk or length are yielded before the CutOff.
        """
        if (response.header("transfer-encoding") or "").lower() == "chunked":
            yield from self._chunks(response)
        elif (length := response.header("content-length")) is not None:
            yield from self._counted(int(length))
        else:
            yield from self._until_close()

    def _chunks(self, response: RawResponse) -> Iterator[bytes]:
        while True:
            line = self.read_until(b"\r\n").strip()
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                raise CutOff(f"not a chunk: {line!r}") from None
            if size == 0:
                while self.read_until(b"\r\n") != b"\r\n":
                    pass  # a trailer
                return
            piece = b"".join(self._counted(size))
            response.chunks.append(piece)
            yield piece
            self.read_exactly(2)

    def _counted(self, size: int) -> Iterator[bytes]:
        while size > 0:
            if not self._buffer:
                self._fill()
            piece, self._buffer = self._buffer[:size], self._buffer[size:]
            size -= len(piece)
            yield piece

    def _until_close(self) -> Iterator[bytes]:
        while True:
            if self._buffer:
                piece, self._buffer = self._buffer, b""
                yield piece
            try:
                self._fill()
            except CutOff as exc:
                if self._was_reset:
                    raise
                del exc
                return

    def closed_by_peer(self, timeout_s: float) -> bool:
        """Tell whether the peer closes the connection within a time, without sending anything."""
        self.sock.settimeout(timeout_s)
        try:
            return self.sock.recv(1) == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False


def encode_json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


def fetch(
    url: str,
    method: str = "GET",
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    json: Any = None,
) -> RawResponse:
    """One request on its own connection; the URL's path and query go out as written."""
    parts = urlsplit(url)
    rest = url.partition("//")[2].partition("/")
    path = "/" + rest[2] if rest[1] else "/"
    with RawClient(f"{parts.scheme}://{parts.netloc}") as client:
        return client.request(method, path, body, headers, json)
