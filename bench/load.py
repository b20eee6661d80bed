"""The load generator: a process of its own, one epoll loop, kept connections, and no answer unchecked.

`python -m bench.load SPEC`, with the spec as JSON. The last line of output is the result as JSON; one answer with
another status or another body than asked for ends the run with exit code 1.
"""

from __future__ import annotations

import json
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from bench import checks, wire
from bench.sample import Sample, summary
from bench.wire import BadAnswer

# How long in seconds a server may say nothing before the run counts as failed.
SILENCE_S = 20.0
READ_BYTES = 1 << 16


@dataclass(slots=True)
class Spec:
    """What to do. `kind` is "requests" (each connection asks again and again) or "streams" (one stream each)."""

    kind: str
    port: int
    method: str
    path: str
    body: str = ""
    connections: int = 1
    # "requests" only: a name of checks.CHECKS, and what it compares with.
    check: str = ""
    expected: Any = None
    # "streams" only: tokens of each stream, and over how many seconds they are opened.
    tokens: int = 0
    ramp_s: float = 1.0
    # "requests" only: how long each connection rests between an answer and its next request.
    pause_s: float = 0.0
    # What runs before the window that is measured, and how long that is.
    warm_s: float = 0.5
    window_s: float = 5.0
    # Processes whose CPU time is sampled when the window begins and ends, by the name of their role.
    watch: dict[str, list[int]] = field(default_factory=dict)
    # Beyond those that every request has.
    headers: dict[str, str] = field(default_factory=dict)


class Peer(Protocol):
    """What the loop needs of a connection."""

    sock: socket.socket

    def readable(self, data: bytes, now_ns: int) -> None:
        """Take what came; raise BadAnswer when it is wrong."""


class Loop:
    """Reads what comes on many sockets. Owns the epoll object and the connections registered with it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._peers: dict[int, Peer] = {}
        self.last_ns = time.monotonic_ns()

    def add(self, peer: Peer) -> None:
        self._peers[peer.sock.fileno()] = peer
        self._epoll.register(peer.sock.fileno(), select.EPOLLIN)

    def turn(self, until_ns: int) -> None:
        """Wait for something to read, at most until a moment, and hand it out."""
        left_s = max(0, until_ns - time.monotonic_ns()) / 1e9
        for number, _ in self._epoll.poll(min(left_s, SILENCE_S)):
            peer = self._peers[number]
            try:
                data = peer.sock.recv(READ_BYTES)
            except BlockingIOError:
                continue
            except OSError as exc:
                raise BadAnswer(f"the connection broke: {exc}") from exc
            self.last_ns = time.monotonic_ns()
            peer.readable(data, self.last_ns)

    def run(self, until_ns: int) -> None:
        while time.monotonic_ns() < until_ns:
            self.turn(until_ns)


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), SILENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    return sock


class Asker:
    """Asks, checks, asks again, on one connection."""

    def __init__(self, spec: Spec, check: checks.Check) -> None:
        self.sock = connect(spec.port)
        self._request, self._check = (
            wire.request(spec.method, spec.path, spec.port, spec.body.encode(), spec.headers),
            check,
        )
        self._pause_ns = int(spec.pause_s * 1e9)
        self._held = b""
        # Of each answer: when it was complete and how long it took.
        self.answers: list[tuple[int, int]] = []
        self._due_ns: int | None = None
        # Told to stop, it ends with the answer that is under way.
        self.stopped = self.ended = False
        self._ask()

    def _ask(self) -> None:
        self._asked_ns = time.monotonic_ns()
        self.sock.send(self._request)

    def readable(self, data: bytes, now_ns: int) -> None:
        if not data:
            raise BadAnswer("the connection was closed instead of an answer")
        self._held += data
        raw_head, found, rest = self._held.partition(b"\r\n\r\n")
        if not found:
            return
        head = wire.parse_head(raw_head)
        body = self._whole(head, rest)
        if body is None:
            return
        if head.status != 200:
            raise BadAnswer(f"status {head.status}: {body[:200]!r}")
        self._check(body)
        self._held = b""
        self.answers.append((now_ns, now_ns - self._asked_ns))
        self.ended = self.stopped
        if self._pause_ns:
            self._due_ns = now_ns + self._pause_ns
        elif not self.stopped:
            self._ask()

    def stop(self) -> None:
        self.stopped = True
        self.ended = self._due_ns is not None

    def ask_if_due(self, now_ns: int) -> None:
        if self._due_ns is not None and self._due_ns <= now_ns:
            self._due_ns = None
            self._ask()

    def _whole(self, head: wire.Head, rest: bytes) -> bytes | None:
        if head.length is None:
            return wire.Chunks(rest).body if rest.endswith(b"0\r\n\r\n") else None
        if len(rest) > head.length:
            raise BadAnswer("more bytes than the answer's length says")
        return rest if len(rest) == head.length else None


class Listener:
    """Takes one streamed answer. What it is made of is looked at when all are there."""

    def __init__(self, port: int, request: bytes) -> None:
        self.sock = connect(port)
        self.sock.send(request)
        self._raw = bytearray()
        # When how many bytes were there.
        self._reads: list[tuple[int, int]] = []

    def readable(self, data: bytes, now_ns: int) -> None:
        self._raw += data
        self._reads.append((len(self._raw), now_ns))
        if not data:
            raise BadAnswer(f"cut after {len(self._raw)} bytes: {bytes(self._raw[-300:])!r}")
        if len(self._reads) == 1 and b" 200 " not in data[:16]:
            raise BadAnswer(f"not a stream: {data[:300]!r}")

    @property
    def began(self) -> bool:
        return bool(self._reads)

    @property
    def ended(self) -> bool:
        return self._raw.endswith(b"\r\n0\r\n\r\n")

    def arrivals(self, tokens: int) -> list[tuple[int, int]]:
        """When each token arrived, and how long after it left the backend; both in ns."""
        raw = bytes(self._raw)
        head_end = raw.index(b"\r\n\r\n") + 4
        wire.parse_head(raw[: head_end - 4])
        found = []
        reads = iter(self._reads)
        there, now_ns = next(reads)
        for sent_ns, raw_end in checks.stream(raw[head_end:], tokens):
            while there < head_end + raw_end:
                there, now_ns = next(reads)
            found.append((now_ns, now_ns - sent_ns))
        return found


def run_requests(spec: Spec) -> dict[str, Any]:
    loop = Loop()
    check = checks.Remembering(checks.CHECKS[spec.check](spec.expected))
    askers = [Asker(spec, check) for _ in range(spec.connections)]
    for asker in askers:
        loop.add(asker)
    keep_asking(loop, spec, askers, time.monotonic_ns() + int(spec.warm_s * 1e9))
    begin = Sample.now(spec.watch)
    keep_asking(loop, spec, askers, begin.at_ns + int(spec.window_s * 1e9))
    end = Sample.now(spec.watch)
    for asker in askers:
        asker.stop()
    wait_all(loop, askers, "ended")
    return {"window": summary([event for asker in askers for event in asker.answers], begin, end)}


def keep_asking(loop: Loop, spec: Spec, askers: Sequence[Asker], until_ns: int) -> None:
    """Run until a moment; those that rest are woken every millisecond, if it is time for them."""
    if not spec.pause_s:
        loop.run(until_ns)
    while (now_ns := time.monotonic_ns()) < until_ns:
        loop.run(min(until_ns, now_ns + 1_000_000))
        for asker in askers:
            asker.ask_if_due(time.monotonic_ns())


def run_streams(spec: Spec) -> dict[str, Any]:
    loop = Loop()
    request = wire.request(spec.method, spec.path, spec.port, spec.body.encode(), spec.headers)
    start = Sample.now(spec.watch)
    listeners = open_streams(loop, spec, request)
    wait_all(loop, listeners, "began")
    loop.run(time.monotonic_ns() + int(spec.warm_s * 1e9))
    begin = Sample.now(spec.watch)
    loop.run(begin.at_ns + int(spec.window_s * 1e9))
    end = Sample.now(spec.watch)
    if any(listener.ended for listener in listeners):
        raise BadAnswer("a stream ended inside the window: ask for more tokens")
    wait_all(loop, listeners, "ended")
    stop = Sample.now(spec.watch)
    events = [event for listener in listeners for event in listener.arrivals(spec.tokens)]
    return {"window": summary(events, begin, end), "whole": summary(events, start, stop)}


def open_streams(loop: Loop, spec: Spec, request: bytes) -> list[Listener]:
    """Open the streams evenly over the ramp; those that run are read meanwhile."""
    listeners = []
    began_ns = time.monotonic_ns()
    for number in range(spec.connections):
        loop.run(began_ns + int(spec.ramp_s * 1e9 * number / spec.connections))
        listener = Listener(spec.port, request)
        loop.add(listener)
        listeners.append(listener)
    return listeners


def wait_all(loop: Loop, peers: Sequence[Peer], state: str) -> None:
    """Read until all are in a state; fails when nothing comes any more."""
    while waiting := [peer for peer in peers if not getattr(peer, state)]:
        loop.run(time.monotonic_ns() + 50_000_000)
        if time.monotonic_ns() - loop.last_ns > SILENCE_S * 1e9:
            raise BadAnswer(f"{len(waiting)} of {len(peers)} have not {state}, and nothing comes any more")


def main() -> None:
    spec = Spec(**json.loads(sys.argv[1]))
    run = run_streams if spec.kind == "streams" else run_requests
    try:
        print(json.dumps(run(spec)))
    except (BadAnswer, OSError) as exc:
        print(f"the run failed: {spec.method} {spec.path}: {exc}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
