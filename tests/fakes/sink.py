"""A backend that takes and gives any number of bytes and keeps none of them: for what must pass in constant memory."""

from __future__ import annotations

import json
import socket
import threading
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field

from conformance.fakes.raw import held_port

BLOCK = 1 << 20
# What a refresher asks of a backend; all sinks hold one model, so that there is something to relay for.
MODEL = "huge:latest"
ANSWERS: dict[str, object] = {
    "/api/ps": {"models": []},
    "/api/version": {"version": "0.33.0"},
    "/api/status": {"cloud": {"disabled": True, "source": "env"}},
}
LINE = json.dumps({"model": MODEL, "response": "x" * 65000, "done": False}, separators=(",", ":")).encode() + b"\n"
LAST_LINE = json.dumps({"model": MODEL, "response": "", "done": True}, separators=(",", ":")).encode() + b"\n"


@dataclass(eq=False)
class Upload:
    """One body as it came: how much of it, its checksum, and whether it was whole.

    Args:
        announced: its length; None of one in chunks, whose framing is counted too.
        left: the peer has closed the connection of a body that was refused.
    """

    announced: int | None
    size: int = 0
    checksum: int = 0
    tail: bytes = b""
    over: threading.Event = field(default_factory=threading.Event)
    left: threading.Event = field(default_factory=threading.Event)

    @property
    def is_whole(self) -> bool:
        return self.size == self.announced if self.announced is not None else self.tail.endswith(b"\r\n0\r\n\r\n")

    def add(self, piece: memoryview) -> None:
        self.size += len(piece)
        self.checksum = zlib.crc32(piece, self.checksum)
        self.tail = (self.tail + piece[-8:].tobytes())[-8:]


@dataclass(eq=False)
class Sink:
    """Owned by one test, which reads what became of the uploads.

    Args:
        refuse_after: bytes after which it answers 413 and closes; None takes all.
        lines: how many lines an answer to `/api/generate` has.
    """

    port: int
    name: str = "sink"
    refuse_after: int | None = None
    lines: int = 1
    uploads: list[Upload] = field(default_factory=list)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    connections: list[socket.socket] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def mark(self) -> str:
        """The name of a model that this sink alone holds."""
        return f"only-{self.name}:latest"

    def next_upload(self, deadline_s: float = 10.0) -> Upload:
        """The upload that comes next, or has come last."""
        assert self.arrived.acquire(timeout=deadline_s), "no upload came"
        return self.uploads[-1]

    def serve(self, connection: socket.socket) -> None:
        """One connection, request by request, until its peer goes."""
        with connection, suppress(ConnectionError, TimeoutError):
            buffer = bytearray(BLOCK)
            while head := _head(connection):
                if not self._answer(connection, head, buffer):
                    return

    def _answer(self, connection: socket.socket, head: bytes, buffer: bytearray) -> bool:
        path, length = head.split(b" ")[1].decode(), _length(head)
        if path.startswith("/api/blobs/") and head.startswith(b"POST"):
            return self._take(connection, Upload(length), buffer)
        _drain(connection, length or 0)
        if path == "/api/generate":
            connection.sendall(_head_of(200, "Content-Type: application/x-ndjson", "Transfer-Encoding: chunked"))
            frame = _chunk(LINE)
            for _ in range(self.lines):
                connection.sendall(frame)
            connection.sendall(_chunk(LAST_LINE) + b"0\r\n\r\n")
        else:
            models = [{"name": name, "model": name, "digest": "ab" * 32, "details": {}} for name in (MODEL, self.mark)]
            body = json.dumps({"models": models} if path == "/api/tags" else ANSWERS.get(path, {})).encode()
            connection.sendall(_head_of(200, "Content-Type: application/json", f"Content-Length: {len(body)}") + body)
        return True

    def _take(self, connection: socket.socket, upload: Upload, buffer: bytearray) -> bool:
        self.uploads.append(upload)
        self.arrived.release()
        view = memoryview(buffer)
        try:
            while not upload.is_whole:
                if self.refuse_after is not None and upload.size >= self.refuse_after:
                    _refuse(connection, buffer)
                    upload.left.set()
                    return False
                size = connection.recv_into(buffer, min(BLOCK, (upload.announced or 1 << 60) - upload.size))
                if not size:
                    return False
                upload.add(view[:size])
        finally:
            upload.over.set()
        connection.sendall(_head_of(201, "Content-Length: 0"))
        return True


@contextmanager
def sink(name: str = "sink", **options: int) -> Iterator[Sink]:
    """A sink that listens, with a thread for each connection."""
    with closing(held_port()) as listener:
        listener.listen(64)
        made = Sink(listener.getsockname()[1], name, **options)
        threads: list[threading.Thread] = []
        accepting = threading.Thread(target=_accept, args=(listener, made, threads), name="sink")
        accepting.start()
        try:
            yield made
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in made.connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def _accept(listener: socket.socket, made: Sink, threads: list[threading.Thread]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        made.connections.append(connection)
        thread = threading.Thread(target=made.serve, args=(connection,), name="sink connection")
        thread.start()
        threads.append(thread)


def _head(connection: socket.socket) -> bytes:
    """A request's head, and nothing of its body; b"" where the peer is gone."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        if not byte:
            return b""
        head += byte
    return head


def _refuse(connection: socket.socket, buffer: bytearray) -> None:
    """Answer in the middle of a request, and read on until the peer has found out."""
    body = b'{"error":"too large for me"}'
    connection.sendall(_head_of(413, "Content-Type: application/json", f"Content-Length: {len(body)}") + body)
    while connection.recv_into(buffer):
        # Whatever is on its way.
        continue


def _length(head: bytes) -> int | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return None if b"chunked" in head.lower() else 0


def _drain(connection: socket.socket, length: int) -> None:
    while length > 0 and (piece := connection.recv(min(length, 65536))):
        length -= len(piece)


def _head_of(status: int, *lines: str) -> bytes:
    return ("\r\n".join([f"HTTP/1.1 {status} Whatever", *lines]) + "\r\n\r\n").encode()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)
