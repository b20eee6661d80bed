"""A tiny gateway that is honest until it is told to lie, to see whether the conformance suite finds out.

It takes turns between its backends, asks the next one where one refuses or is busy, relays raw bytes, and closes the
client's connection after each answer.
"""

from __future__ import annotations

import itertools
import select
import socket
import threading
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

from conformance.fakes.raw import content_length, held_port

JOIN_S = 5.0
CONNECT_S = 2.0
SECRETS = (b"cookie", b"authorization", b"x-api-key")
LAST_CHUNK = b"0\r\n\r\n"


class Gateway:
    """A gateway on a port of its own.

    Args:
        lies: any of
            `ends-cleanly`: an answer that broke off gets a last chunk;
            `asks-again`: an answer that broke off goes on with another backend's;
            `gathers`: nothing is passed on before the answer is whole;
            `works-on`: a client that left is not noticed;
            `stays-open`: the client's connection is kept, whatever became of the answer;
            `believes-lengths`: of two lengths the first is right, and what is missing of a body does not matter, so
            a client that sends no more has not left;
            `gives-up`: no other backend is asked;
            `shares-cookies`: a backend's cookie goes with the next client's request;
            `passes-secrets`: the client's credentials go to the backend.
    """

    def __init__(self, ports: Sequence[int], *lies: str) -> None:
        self.lies = frozenset(lies)
        self._turns = itertools.cycle(range(len(ports)))
        self._ports = ports
        self._cookie = b""
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener = held_port()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listener.listen(256)
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for sock in (self._listener, *list(self._open)):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads:
            thread.join(JOIN_S)
        self._listener.close()

    def _start(self, run, *arguments) -> None:  # type: ignore[no-untyped-def]
        thread = threading.Thread(target=run, args=arguments, name="dishonest", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        self._open.add(client)
        with client:
            try:
                while self._one(client) and "stays-open" in self.lies:
                    pass
            except OSError:
                pass
            finally:
                self._open.discard(client)

    def _one(self, client: socket.socket) -> bool:
        """Serve one request; returns whether there was one."""
        request = self._read(client)
        if request is None:
            return False
        first = next(self._turns)
        tries = 1 if "gives-up" in self.lies else len(self._ports)
        for number in range(tries):
            port = self._ports[(first + number) % len(self._ports)]
            if self._ask(client, request, port, is_last=number == tries - 1):
                return True
        client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        return True

    # --- the request ---------------------------------------------------------------------------

    def _read(self, client: socket.socket) -> bytes | None:
        """Read one request and write it anew; None where there is none, or none that is clear."""
        data = bytearray()
        while b"\r\n\r\n" not in data:
            piece = client.recv(1 if "stays-open" in self.lies else 65536)
            if not piece:
                return None
            data += piece
        head, _, body = bytes(data).partition(b"\r\n\r\n")
        if b"\r\nhost:" not in head.lower():
            return None
        if head.lower().count(b"\r\ncontent-length:") > 1 and "believes-lengths" not in self.lies:
            client.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return None
        length = content_length(head)
        while len(body) < length:
            piece = client.recv(min(65536, length - len(body)))
            if not piece and "believes-lengths" not in self.lies:
                return None
            if not piece:
                break
            body += piece
        return self._head(head, len(body[:length])) + body[:length]

    def _head(self, head: bytes, length: int) -> bytes:
        first, *lines = head.split(b"\r\n")
        dropped = {b"host", b"connection", b"content-length"}
        if "passes-secrets" not in self.lies:
            dropped |= set(SECRETS)
        kept = [line for line in lines if line.partition(b":")[0].lower() not in dropped]
        kept += [b"Host: localhost", b"Connection: close", b"Content-Length: %d" % length]
        if self._cookie and "shares-cookies" in self.lies:
            kept.append(b"Cookie: " + self._cookie)
        return b"\r\n".join([first, *kept]) + b"\r\n\r\n"

    # --- the answer ----------------------------------------------------------------------------

    def _ask(self, client: socket.socket, request: bytes, port: int, is_last: bool) -> bool:
        """Ask one backend and relay what it says; returns False where the next one may be asked."""
        try:
            backend = socket.create_connection(("127.0.0.1", port), CONNECT_S)
        except OSError:
            return False
        self._open.add(backend)
        try:
            with backend:
                backend.sendall(request)
                return self._relay(client, self._pieces(client, backend), request, is_last)
        finally:
            self._open.discard(backend)

    def _pieces(self, client: socket.socket, backend: socket.socket) -> Iterable[bytes]:
        """What the backend sends, until its end or until the client has left."""
        watched = [backend] if self.lies & {"works-on", "believes-lengths"} else [backend, client]
        backend.settimeout(None)
        while True:
            ready = select.select(watched, [], [])[0]
            if client in ready and not client.recv(1, socket.MSG_PEEK):
                return
            if backend not in ready:
                watched = [backend]
                continue
            try:
                piece = backend.recv(65536)
            except ConnectionError:
                return
            if not piece:
                return
            yield piece

    def _relay(self, client: socket.socket, pieces: Iterable[bytes], request: bytes, is_last: bool) -> bool:
        seen = b""
        for piece in pieces:
            if not seen and piece.startswith(b"HTTP/1.1 503") and not is_last:
                return False
            seen += piece
            # Before the client has all of it, and asks the next question.
            self._keep_cookie(seen)
            if "gathers" not in self.lies:
                client.sendall(piece)
        if "gathers" in self.lies:
            client.sendall(seen)
        if seen and b"chunked" in seen and not seen.endswith(LAST_CHUNK):
            self._broken(client, request)
        return bool(seen)

    def _keep_cookie(self, answer: bytes) -> None:
        for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n"):
            if line.lower().startswith(b"set-cookie: "):
                self._cookie = line[12:].partition(b";")[0]

    def _broken(self, client: socket.socket, request: bytes) -> None:
        """What becomes of an answer that broke off."""
        if "ends-cleanly" in self.lies:
            client.sendall(LAST_CHUNK)
        if "asks-again" in self.lies:
            with socket.create_connection(("127.0.0.1", self._ports[next(self._turns)]), CONNECT_S) as backend:
                backend.sendall(request)
                again = b"".join(self._pieces(client, backend))
            client.sendall(again.partition(b"\r\n\r\n")[2])
