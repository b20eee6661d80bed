"""Where the rows run: a gateway somebody else started, in front of two backends of the suite's own."""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from conformance.fakes.faults import Fault
from conformance.fakes.http import CutOff, RawClient, RawResponse, encode_json
from conformance.fakes.models import FakeModel
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.recorded import RecordedRequest
from conformance.row import Broken

MODEL = "conform"
ONLY = {"a": "only-a", "b": "only-b"}
COPY = "conform-copy"
CHAT = "/api/chat"
V1_CHAT = "/v1/chat/completions"
# In this header and in the question's text; one of them survives most of what can become of a request.
MARK = "X-Conformance-Row"
# Longest wait in seconds for anything that has no time of its own in its promise.
PATIENCE_S = 10.0
# How often something is looked at again that nothing tells about, in seconds.
LOOK_S = 0.01
_numbers = itertools.count(1)


def backend(name: str, host: str = "127.0.0.1", port: int = 0) -> FakeOllama:
    """One of the two backends, not started: the suite's models, and one that it alone holds."""
    shared = FakeModel(MODEL)
    models = [shared, FakeModel(COPY, digest=shared.digest), FakeModel(ONLY[name])]
    return FakeOllama(name, models, host=host, port=port)


@dataclass(eq=False)
class Strike:
    """A fault that the next `left` matching requests meet, whichever backend they reach."""

    left: int
    matches: Callable[[RecordedRequest], bool]
    struck: list[RecordedRequest] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, request: RecordedRequest) -> bool:
        """Tell whether this request is to be struck; called by the backends' threads."""
        with self._lock:
            if len(self.struck) >= self.left or not self.matches(request):
                return False
            self.struck.append(request)
            return True


class Site:
    """One row's view of the gateway and the two backends.

    Every request carries a mark of the row, so that what a gateway asks by itself is never taken for it.
    """

    def __init__(
        self,
        url: str,
        backends: tuple[FakeOllama, FakeOllama],
        headers: Mapping[str, str] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        parts = urlsplit(url)
        self.host = parts.hostname or ""
        self.port = parts.port or 80
        self.authority = parts.netloc
        self.prefix = parts.path.rstrip("/")
        self.a, self.b = self.backends = backends
        self.headers = dict(headers or {})
        self.patience_s = patience_s
        self.mark = f"row {next(_numbers)} {time.time_ns()}"
        self.down: set[FakeOllama] = set()

    # --- asking --------------------------------------------------------------------------------

    def client(self, timeout_s: float = PATIENCE_S) -> RawClient:
        """A connection to the gateway."""
        return RawClient(f"http://{self.authority}", timeout_s)

    def body(self, stream: bool = True, model: str = MODEL, **more: Any) -> bytes:
        """The usual question, which both chat routes understand."""
        messages = [{"role": "user", "content": self.mark}]
        return encode_json({"model": model, "messages": messages, "stream": stream, **more})

    def send(
        self,
        client: RawClient,
        path: str = CHAT,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
    ) -> None:
        """Send a well-formed request; without a body, the usual streaming question."""
        sent = self.body() if body is None and method == "POST" else body
        given = {"Content-Type": "application/json", MARK: self.mark, **self.headers, **(headers or {})}
        client.send_request(method, self.prefix + path, sent, given)

    def ask(
        self,
        path: str = CHAT,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        timeout_s: float = PATIENCE_S,
    ) -> RawResponse:
        """One request on a connection of its own, and its answer."""
        with self.client(timeout_s) as client:
            self.send(client, path, body, headers, method)
            return client.read_response(head_only=method == "HEAD")

    def raw_head(self, lines: Iterable[str], path: str = CHAT, host: bool = True) -> bytes:
        """The head of a POST with these header lines as they are."""
        own = [f"{name}: {value}" for name, value in {MARK: self.mark, **self.headers}.items()]
        first = [f"POST {self.prefix}{path} HTTP/1.1", *([f"Host: {self.authority}"] if host else [])]
        return ("\r\n".join([*first, *own, *lines]) + "\r\n\r\n").encode("latin-1")

    def raw(self, data: bytes, timeout_s: float = PATIENCE_S) -> RawResponse | None:
        """Send bytes as they are; the answer, or None where the gateway closed without one."""
        with self.client(timeout_s) as client:
            try:
                client.send(data)
                return client.read_response()
            except (CutOff, ConnectionError):
                return None

    def send_and_forget(self, path: str, body: bytes, method: str) -> None:
        """Send a request whose answer matters to nobody, and wait for it or for a close."""
        with self.client() as client:
            try:
                self.send(client, path, body, method=method)
                client.read_response()
            except (CutOff, ConnectionError):
                return

    # --- the backends --------------------------------------------------------------------------

    def strike(
        self,
        fault: Fault | type[Fault],
        path: str = CHAT,
        times: int = 1,
        when: Callable[[RecordedRequest], bool] | None = None,
        on: FakeOllama | None = None,
    ) -> Strike:
        """Let the next `times` requests of this row meet a fault, whichever backend they reach, or only `on` one."""

        def matches(request: RecordedRequest) -> bool:
            return self.is_mine(request) and (when is None or when(request))

        strike = Strike(times, matches)
        for fake in self.backends if on is None else (on,):
            fake.fault(path, fault, times=None, when=strike.take)
        return strike

    def always(self, fault: Fault | type[Fault], path: str = CHAT) -> Strike:
        return self.strike(fault, path, times=1_000_000)

    def is_mine(self, request: RecordedRequest) -> bool:
        return request.header(MARK) == self.mark or self.mark.encode() in request.body

    def asked(self, path: str = CHAT) -> list[RecordedRequest]:
        """What this row's requests were when they reached a backend, oldest first."""
        found = [request for fake in self.backends for request in fake.requests_for(path) if self.is_mine(request)]
        return sorted(found, key=lambda request: request.at)

    def wait_asked(self, path: str = CHAT, count: int = 1, deadline_s: float = PATIENCE_S) -> RecordedRequest:
        """Wait until a request of this row has reached a backend; returns the last of them."""
        self.wait(lambda: len(self.asked(path)) >= count, "the request reached no backend", deadline_s)
        return self.asked(path)[-1]

    def asked_last(self) -> FakeOllama:
        """The backend that got this row's last request: where a gateway with a favourite goes next."""
        last = self.wait_asked()
        return next(fake for fake in self.backends if last in fake.requests)

    def other(self, fake: FakeOllama) -> FakeOllama:
        return self.b if fake is self.a else self.a

    def kill(self, fake: FakeOllama, reset: bool = False) -> None:
        self.down.add(fake)
        fake.kill(reset)

    def black_hole(self, fake: FakeOllama) -> None:
        """Make a backend vanish: connects to it hang, and none is left that was open."""
        self.kill(fake)
        fake.black_hole()

    def revive(self) -> None:
        """Bring both backends back into their first state."""
        for fake in self.backends:
            fake.clear_faults()
            fake.resume()
            if fake in self.down:
                fake.restart()
            fake.tokens, fake.token_delay_s, fake.first_token_delay_s = None, 0.0, 0.0
        self.down.clear()

    @staticmethod
    def now() -> float:
        """The clock by which backends and clients date what they see."""
        return time.monotonic()

    def wait(self, ready: Callable[[], bool], instead: str, deadline_s: float = PATIENCE_S) -> None:
        """Wait for something that nothing tells about.

        Raises:
            Broken: after the deadline, with what was the case instead.
        """
        end = time.monotonic() + deadline_s
        while not ready():
            if time.monotonic() > end:
                raise Broken(f"{instead} within {deadline_s:g} s")
            time.sleep(LOOK_S)


def says_close(answer: RawResponse) -> bool:
    """Tell whether a gateway says that it will not serve another request on this connection."""
    return "close" in (answer.header("connection") or "").lower() or answer.head.startswith(b"HTTP/1.0")


def told(answer: RawResponse | None) -> str:
    """An answer in a few words, for the line of a broken promise."""
    if answer is None:
        return "a close without an answer"
    text = answer.body[-100:].decode("utf-8", "replace").strip()
    return f"{answer.status}, {answer.ended}, {len(answer.body)} bytes" + (f" ending in {text!r}" if text else "")


def records(body: bytes) -> list[Any]:
    """The JSON records of an NDJSON or SSE body; what is no JSON is left out."""
    found = []
    for line in body.splitlines():
        try:
            found.append(json.loads(line.removeprefix(b"data: ")))
        except ValueError:
            continue
    return found
