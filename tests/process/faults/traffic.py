"""A load of mixed requests whose every answer is compared with what a backend really sent."""

from __future__ import annotations

import itertools
import json
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from conformance.fakes.http import CutOff, Ended, RawClient
from tests.process.faults.talkers import CANARY, Sent, Talker, Verdict, judge
from tests.product import question

MODELS = ("tiny", "small", "large")
# Bound in seconds for any single read of the traffic, and for its end.
READ_S = 20.0
JOIN_S = READ_S + 5
# The talkers pause so long between tokens, in seconds.
TOKEN_S = 0.01

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Kind:
    """One sort of request; `stream` None: the route has no such thing."""

    path: str
    stream: bool | None = None


STREAMS = (
    Kind("/api/chat", True),
    Kind("/v1/chat/completions", True),
    Kind("/api/generate", True),
    Kind("/v1/messages", True),
)
CHATS = (*STREAMS, Kind("/api/chat", False), Kind("/v1/chat/completions", False), Kind("/api/embed"))
MIXED = (*CHATS, Kind("/api/show"), Kind("/api/tags"))


@dataclass(eq=False)
class Reply:
    """One answer as a client of the traffic got it. Times are monotonic, in seconds.

    Args:
        status: 0 where no answer came.
        gap_s: the longest silence between two pieces of its body.
    """

    kind: Kind
    marker: bytes
    began_s: float
    status: int = 0
    body: bytes = b""
    ended: Ended = "cut"
    first_s: float = 0.0
    gap_s: float = 0.0
    gap_at_s: float = 0.0
    ended_s: float = 0.0
    sents: list[Sent] = field(default_factory=list)
    verdict: Verdict = "broken"

    @property
    def added_s(self) -> float:
        """What Caravan added to the time until the first byte."""
        return self.first_s - self.began_s - self.sents[-1].thought_s if self.sents and self.first_s else 0.0

    def __repr__(self) -> str:
        took = self.ended_s - self.began_s
        told = f"{self.kind.path} stream={self.kind.stream} {self.status} {self.ended} {self.verdict} in {took:.2f} s"
        return f"<{told}, asked {[sent.backend for sent in self.sents]}: {self.body[-160:]!r}>"


def asked(kind: Kind, marker: str, tokens: int, model: str) -> dict[str, Any] | None:
    """The body of a request, with its marker in the prompt."""
    if kind.path == "/api/tags":
        return None
    if kind.path == "/api/show":
        return {"model": model}
    told = question(kind.path, model, kind.stream)
    for name, value in (("messages", [{"role": "user", "content": marker}]), ("prompt", marker), ("input", marker)):
        if name in told:
            told[name] = value
    return (
        {**told, "max_tokens": tokens} if kind.path.startswith("/v1") else {**told, "options": {"num_predict": tokens}}
    )


class Client:
    """One client that keeps its connection while that is there."""

    def __init__(self, url: str, talkers: Sequence[Talker]) -> None:
        self._url, self._talkers = url, talkers
        self._raw: RawClient | None = None

    def ask(self, kind: Kind, tokens: int, model: str = "tiny") -> Reply:
        """One request from beginning to end, judged."""
        reply = self.begin(kind, tokens, model)
        self.finish(reply)
        return reply

    def begin(self, kind: Kind, tokens: int, model: str = "tiny") -> Reply:
        """Send a request and read the head of its answer."""
        marker = f"{CANARY}-{next(_numbers)}"
        reply = Reply(kind, marker.encode(), time.monotonic())
        body = asked(kind, marker, tokens, model)
        try:
            if self._raw is None:
                self._raw = RawClient(self._url, READ_S)
            headers = {"Content-Type": "application/json"}
            if body is None:
                self._raw.send_request("GET", kind.path)
            else:
                self._raw.send_request("POST", kind.path, json.dumps(body).encode(), headers)
            self._head = self._raw.read_head()
            reply.status = self._head.status
        except (CutOff, OSError):
            self.close()
        return reply

    def finish(self, reply: Reply) -> None:
        """Read the rest of an answer, and judge it."""
        if self._raw is not None:
            self._read(reply, self._raw)
        reply.ended_s = time.monotonic()
        found = itertools.chain.from_iterable(talker.sent(reply.marker) for talker in self._talkers)
        reply.sents = sorted(found, key=lambda sent: sent.arrived_s)
        reply.verdict = verdict(reply)

    def _read(self, reply: Reply, raw: RawClient) -> None:
        seen_s = 0.0
        try:
            for piece in raw.iter_body(self._head):
                now = time.monotonic()
                reply.body += piece
                reply.first_s = reply.first_s or now
                if seen_s and now - seen_s > reply.gap_s:
                    reply.gap_s, reply.gap_at_s = now - seen_s, now
                seen_s = now
            reply.ended = "complete"
        except (CutOff, OSError):
            self.close()
        if (self._head.header("connection") or "").lower() == "close":
            self.close()

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()


def verdict(reply: Reply) -> Verdict:
    if reply.status == 0:
        # The connection went before an answer began.
        return "broken"
    if reply.kind in CHATS:
        return judge(reply.status, reply.body, reply.ended, reply.sents)
    if reply.status != 200 or reply.ended == "cut":
        return "refused" if reply.ended == "complete" else "broken"
    return "complete" if json.loads(reply.body) else "wrong"


class Traffic:
    """Clients in threads that ask one request after the other until the end of the `with` block.

    At its end the judge has seen every answer: one that is wrong fails the test whatever else it looks at.

    Args:
        tokens: length of each answer.
    """

    def __init__(
        self,
        url: str,
        talkers: Sequence[Talker],
        kinds: Sequence[Kind] = MIXED,
        clients: int = 8,
        tokens: int = 12,
    ) -> None:
        self._url, self._talkers, self._kinds, self._tokens = url, talkers, kinds, tokens
        self.replies: list[Reply] = []
        self._stop = threading.Event()
        self._ended = threading.Condition()
        self._errors: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(number,), name=f"traffic-{number}") for number in range(clients)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_S)
        if error is not None:
            return
        assert not [thread for thread in self._threads if thread.is_alive()], "a request does not end"
        if self._errors:
            raise self._errors[0]
        wrong = self.having("wrong")
        assert not wrong, wrong[:5]

    def _run(self, number: int) -> None:
        client = Client(self._url, self._talkers)
        try:
            for turn in itertools.count(number):
                if self._stop.is_set():
                    return
                kind = self._kinds[turn % len(self._kinds)]
                reply = client.ask(kind, self._tokens, MODELS[turn % len(MODELS)])
                with self._ended:
                    self.replies.append(reply)
                    self._ended.notify_all()
                if reply.status == 0:
                    # Nobody listens: no storm of connects.
                    self._stop.wait(0.02)
        except BaseException as exc:  # the test's thread raises it
            self._errors.append(exc)
        finally:
            client.close()

    def more(self, count: int = 40, deadline_s: float = 30.0) -> list[Reply]:
        """Wait for so many more answers to requests that begin now; returns those that came."""
        now = time.monotonic()
        with self._ended:
            came = self._ended.wait_for(lambda: self._errors or len(self.since(now)) >= count, deadline_s)
        assert came, f"{len(self.since(now))} of {count} answers in {deadline_s} s; the last was {self.replies[-1:]}"
        return self.since(now)

    def during(self, seconds: float) -> list[Reply]:
        """Let it run for a time; returns the answers to requests that began and ended in it."""
        now = time.monotonic()
        self._stop.wait(seconds)
        return self.since(now)

    def since(self, began_s: float) -> list[Reply]:
        return [reply for reply in list(self.replies) if reply.began_s >= began_s]

    def having(self, *verdicts: Verdict) -> list[Reply]:
        return [reply for reply in list(self.replies) if reply.verdict in verdicts]

    @property
    def failed(self) -> list[Reply]:
        """Everything that was not answered completely."""
        return self.having("broken", "refused", "wrong")


def chats(replies: Iterable[Reply]) -> list[Reply]:
    return [reply for reply in replies if reply.kind in CHATS]


def longest_gap_s(replies: Iterable[Reply]) -> float:
    return max((reply.gap_s for reply in replies), default=0.0)


def added_ms(replies: Iterable[Reply], of: Callable[[list[float]], float] = statistics.median) -> float:
    """What Caravan added to the first byte of streamed chats, in milliseconds."""
    return of([reply.added_s * 1000 for reply in replies if reply.kind in STREAMS and reply.sents])


def p99(values: list[float]) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * 0.99))]


def tell(what: str, replies: Sequence[Reply]) -> None:
    """One line with the figures of a bar, for people; they depend on what else the machine does."""
    median, worst = added_ms(replies), added_ms(replies, p99)
    print(
        f"{what}: {len(replies)} answers, added median {median:.1f} ms, p99 {worst:.1f} ms, "
        f"longest gap {longest_gap_s(replies) * 1000:.0f} ms"
    )


@dataclass(eq=False)
class Held:
    """Answers under way, each on a connection of its own, read to their ends by threads of their own."""

    replies: list[Reply] = field(default_factory=list)
    _begun: list[tuple[Client, Reply]] = field(default_factory=list)
    _threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, client: Client, kind: Kind, tokens: int) -> Reply:
        """Send one more request and wait for the head of its answer; `read` reads the rest."""
        reply = client.begin(kind, tokens)
        self._begun.append((client, reply))
        return reply

    def read(self) -> None:
        """Read what has begun, from now on."""
        for client, reply in self._begun:
            self._start(client, lambda client=client, reply=reply: (client.finish(reply), reply)[1])
        self._begun = []

    def ask(self, client: Client, kind: Kind, tokens: int) -> None:
        """Send one more request whose answer may take long to begin."""
        self._start(client, lambda: client.ask(kind, tokens))

    def ends(self) -> list[Reply]:
        """Wait for the end of each."""
        for thread in self._threads:
            thread.join(JOIN_S)
        assert not [thread for thread in self._threads if thread.is_alive()], "an answer does not end"
        return self.replies

    def _start(self, client: Client, wait: Callable[[], Reply]) -> None:
        def run() -> None:
            try:
                self.replies.append(wait())
            finally:
                client.close()

        self._threads.append(threading.Thread(target=run, name="held"))
        self._threads[-1].start()
