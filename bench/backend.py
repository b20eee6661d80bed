"""A backend that costs next to nothing: `python -m bench.backend --port 0`.

One epoll loop with finished answers, so that the cores belong to what is measured. A streamed chat has as many tokens
as `options.num_predict` asks for, paced at `--rate`; each token says its number and the time it left, on the clock that
all processes of a machine share. Not a simulation of Ollama: that is conformance/fakes.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import random
import select
import socket
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

MODEL = "tiny"
CREATED = b'{"model":"tiny","created_at":"2026-11-21T14:29:54.346363927Z",'
TOKEN = CREATED + b'"message":{"role":"assistant","content":" %d:%d"},"done":false}\n'
COUNTS = b'"total_duration":729505508,"load_duration":523753703,"prompt_eval_count":7,"prompt_eval_duration":12500000,'
LAST = CREATED + b'"message":{"role":"assistant","content":""},"done":true,"done_reason":"stop",' + COUNTS
TEXT = "Hello from a. The"
CHAT = CREATED + b'"message":{"role":"assistant","content":"%b"},"done":true,"done_reason":"stop",' % TEXT.encode()
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nDate: Sat, 21 Nov 2026 14:29:54 GMT\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
# What `--fail-after` breaks. Not the listing: it is the health probe, and a backend marked dead is asked nothing.
COUNTED = {b"POST /api/chat", b"POST /api/show"}
DIGEST = "26f6dc4cce96e72ccc51d3f702fd83c5362769845c6d446546a1b93f0131a080"
DETAILS = {
    "parent_model": "",
    "format": "gguf",
    "family": "llama",
    "families": ["llama"],
    "parameter_size": "3.2B",
    "quantization_level": "Q4_K_M",
}


def tags(models: int) -> bytes:
    """A listing of this many models; `tiny` is the first."""
    return listing(range(models))


def listing(numbers: Iterable[int]) -> bytes:
    """A listing of the models with these numbers; that of `tiny` is 0."""
    listed = [
        {
            "name": name_of(number),
            "model": name_of(number),
            "modified_at": "2026-11-21T11:58:56.190013695Z",
            "size": 2019393189,
            "digest": DIGEST if number == 0 else f"{number:064x}",
            "details": DETAILS,
            "capabilities": ["completion", "tools"],
        }
        for number in numbers
    ]
    return json.dumps({"models": listed}, separators=(",", ":")).encode()


def name_of(number: int) -> str:
    return f"model-{number}:latest" if number else f"{MODEL}:latest"


def show_document() -> bytes:
    """A document of the usual size: a licence makes most of it."""
    info = {"general.architecture": "llama", "general.parameter_count": 3212749888, "llama.context_length": 131072}
    document = {
        "license": "All rights and duties. " * 300,
        "modelfile": "FROM /srv/models/blobs/sha256-" + DIGEST,
        "template": "{{ .Prompt }}",
        "details": DETAILS,
        "model_info": {**info, **{f"llama.made_up.field_{number}": number for number in range(30)}},
        "capabilities": ["completion", "tools"],
        "modified_at": "2026-11-21T11:58:56.190013695Z",
    }
    return json.dumps(document, separators=(",", ":")).encode()


def answer(body: bytes, status: bytes = b"200 OK") -> bytes:
    head = b"HTTP/1.1 %b\r\nContent-Type: application/json; charset=utf-8\r\nDate: Sat, 21 Nov 2026 14:29:54 GMT\r\n"
    return head % status + b"Content-Length: %d\r\n\r\n" % len(body) + body


def chunk(record: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(record), record)


@dataclass(slots=True)
class Stream:
    """One streamed answer under way."""

    connection: Connection
    tokens: int
    sent: int = 0


class Connection:
    """A client's connection; reads requests one after the other."""

    def __init__(self, sock: socket.socket, server: Server) -> None:
        self.sock, self._server = sock, server
        self._held = b""
        self.open = True

    def readable(self) -> None:
        try:
            data = self.sock.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self._held += data
        while self.open and (complete := self._take()) is not None:
            self._server.serve(self, *complete)

    def _take(self) -> tuple[bytes, bytes] | None:
        """One complete request: its first line and its body."""
        head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found:
            return None
        low = head.lower()
        size = int(low.split(b"content-length:", 1)[1].split(b"\r\n", 1)[0]) if b"content-length:" in low else 0
        if len(rest) < size:
            return None
        self._held = rest[size:]
        return head.split(b"\r\n", 1)[0], rest[:size]

    def send(self, data: bytes) -> None:
        """Send at once. A reader that lets a whole socket buffer fill is no part of any bench: it is cut off."""
        try:
            if self.sock.send(data) < len(data):
                self.close()
        except OSError:
            self.close()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._server.forget(self)
            self.sock.close()


class Server:
    """The loop. Owns all connections and the plan of what is sent when."""

    def __init__(self, port: int, rate: float, models: int, fail_after: int | None) -> None:
        self.listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        self.listener.setblocking(False)
        self._period = 1 / rate
        self._fail_after = fail_after
        self._epoll = select.epoll()
        self._listeners: dict[int, socket.socket] = {}
        self.listen(self.listener)
        self._connections: dict[int, Connection] = {}
        self._due: list[tuple[float, int, Stream]] = []
        self._served: Counter[bytes] = Counter()
        self._fixed = {
            b"GET /": b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 17\r\n\r\nOllama is running",
            b"GET /api/tags": answer(tags(models)),
            b"GET /api/ps": answer(b'{"models":[]}'),
            b"GET /api/version": answer(b'{"version":"0.33.0"}'),
            b"POST /api/show": answer(show_document()),
        }
        self._chat = answer(CHAT + COUNTS + b'"eval_count":5,"eval_duration":50000000}')
        self._not_found = answer(b'{"error":"not found"}', b"404 Not Found")
        self._failure = answer(b'{"error":"broken on purpose"}', b"500 Internal Server Error")

    def listen(self, listener: socket.socket) -> None:
        self._listeners[listener.fileno()] = listener
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def run(self) -> None:
        while True:
            self._wait()
            for number, _ in self._epoll.poll(0):
                if number in self._listeners:
                    self._accept(self._listeners[number])
                else:
                    self._connections[number].readable()
            self._send_due()

    def _wait(self) -> None:
        """Wait for a request or the next token. Not epoll's own timeout: it knows whole milliseconds only."""
        timeout = max(0.0, self._due[0][0] - time.monotonic()) if self._due else None
        select.select([self._epoll], [], [], timeout)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                sock, _ = listener.accept()
                sock.setblocking(False)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections[sock.fileno()] = Connection(sock, self)
                self._epoll.register(sock.fileno(), select.EPOLLIN)

    def forget(self, connection: Connection) -> None:
        self._epoll.unregister(connection.sock.fileno())
        del self._connections[connection.sock.fileno()]

    def serve(self, connection: Connection, line: bytes, body: bytes) -> None:
        route = line.rpartition(b" ")[0]
        self._served[route] += 1
        if route in COUNTED and self._fail_after is not None and self._served[route] > self._fail_after:
            connection.send(self._failure)
        elif route == b"POST /api/chat":
            self._serve_chat(connection, body)
        else:
            connection.send(self._fixed.get(route, self._not_found))

    def _serve_chat(self, connection: Connection, body: bytes) -> None:
        if b'"stream":false' in body:
            connection.send(self._chat)
            return
        stream = Stream(connection, json.loads(body)["options"]["num_predict"])
        # A random phase, as streams that began at any time have: else all tokens come in one burst.
        self._plan(time.monotonic() + random.random() * self._period, stream)

    def _plan(self, due: float, stream: Stream) -> None:
        heapq.heappush(self._due, (due, id(stream), stream))

    def _send_due(self) -> None:
        now = time.monotonic()
        while self._due and self._due[0][0] <= now:
            due, _, stream = heapq.heappop(self._due)
            if not stream.connection.open:
                continue
            self._send_token(stream)
            if stream.sent < stream.tokens:
                self._plan(due + self._period, stream)
            else:
                stream.connection.send(chunk(LAST + b'"eval_count":%d}\n' % stream.tokens))
                stream.connection.send(b"0\r\n\r\n")

    def _send_token(self, stream: Stream) -> None:
        record = chunk(TOKEN % (stream.sent, time.monotonic_ns()))
        stream.connection.send(record if stream.sent else STREAM_HEAD + record)
        stream.sent += 1


def main() -> None:
    """Serve until a signal ends the process; the first line of output is the port."""
    parser = argparse.ArgumentParser(prog="python -m bench.backend", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="default: picked by the kernel")
    parser.add_argument("--rate", type=float, default=50.0, help="tokens per second of each stream")
    parser.add_argument("--models", type=int, default=20, help="how many models /api/tags lists")
    parser.add_argument("--fail-after", type=int, help="answer 500 to all but so many first chats and shows")
    options = parser.parse_args()
    server = Server(options.port, options.rate, options.models, options.fail_after)
    print(server.listener.getsockname()[1], flush=True)
    server.run()


if __name__ == "__main__":
    main()
