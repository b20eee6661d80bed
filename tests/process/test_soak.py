"""Mixed requests in thousands over three backends that misbehave in every known way: none gets a wrong answer.

`make test` sends a few thousand, `make soak` ten thousand; the seed stands in the output.
"""

from __future__ import annotations

import json
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from conformance.fakes import faults
from conformance.fakes.faults import Fault, Status, StreamThen
from conformance.fakes.http import CutOff, RawClient, RawResponse
from conformance.fakes.recorded import RecordedRequest
from tests.fakes.redis import PrivateRedis
from tests.process.faults.site import Site, site
from tests.process.faults.talkers import CANARY, MARKER, SONG, Sent, Talker, is_error, judge, without_error_record
from tests.process.faults.traffic import MODELS, Kind, asked
from tests.product import INFERENCE, STREAMING

# The talkers live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = [pytest.mark.leaky, pytest.mark.alone]

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "2000"))
SEED = int(os.environ.get("SOAK_SEED", "20261121"))
CLIENTS = 8
# Bound in seconds for any single read.
READ_S = 20.0
# Half of the requests that a backend gets meet a fault there: one in eight meets only faults.
FAULTY = 0.5
# Pauses of a backend that is slow, and of one that says nothing for longer than it may, in seconds.
SLOW_S, SILENT_S = 0.03, 5.0
LIMITS = {
    "CARAVAN_FIRST_BYTE_TIMEOUT": "1",
    "CARAVAN_LOAD_TIMEOUT": "1",
    "CARAVAN_IDLE_TIMEOUT": "0.2",
    "WEB_CONCURRENCY": "2",
}
KINDS = (
    *(Kind(path, stream) for path in STREAMING for stream in (True, False)),
    *(Kind(path) for path in INFERENCE if "embed" in path),
)
TOKENS = 8
# Python's clients take no longer header; in bytes.
LONGEST_HEAD = 64 << 10


def statuses() -> Iterator[Fault]:
    for code in (400, 401, 403, 404, 408, 413, 429, 500, 501, 502, 503, 504, 529):
        yield Status(code, json.dumps({"error": f"{SONG} {code}"}))


def every_fault() -> list[Fault]:
    """One of each, and of each ending of a stream after none, one and some tokens."""
    endings = (
        faults.Rst,
        faults.Eof,
        faults.HalfChunk,
        faults.Garbage,
        faults.ErrorRecord,
        faults.CleanEnd,
        lambda: faults.Stall(SLOW_S),
        lambda: faults.Stall(SILENT_S),
    )
    return [
        faults.StallBeforeHeaders(SLOW_S),
        faults.SlowLoad(SLOW_S),
        faults.EofBeforeHeaders(),
        faults.RstBeforeHeaders(),
        *statuses(),
        faults.Refuse503Busy(),
        faults.Error500(),
        faults.ErrorInFirstChunk(),
        faults.Redirect(),
        faults.GarbageAfter200(),
        faults.GarbageAfter200(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"),
        faults.ShortContentLength(),
        faults.ShortContentLength(200),
        faults.LongContentLength(),
        faults.DoubleContentLength(),
        faults.TrickledHeaders(0.0002),
        faults.HugeHeader(LONGEST_HEAD + 100),
        faults.CleanEndWithoutDone(),
        *(StreamThen(tokens, ending()) for ending in endings for tokens in (0, 1, 5)),
    ]


# It costs a second each time: once in so many turns.
RARELY = faults.StallBeforeHeaders(SILENT_S)


class Faulty(Talker):
    """A talker that draws a fault for half of its requests, each of them once before any comes again."""

    def __init__(self, name: str, seed: int) -> None:
        super().__init__(name, [*MODELS, f"only-{name}"], token_delay_s=0.0005)
        self._random = random.Random(seed)
        self._bag: list[Fault] = []
        self.turns = 0
        self.misbehaves = False
        self.played: Counter[str] = Counter()

    @property
    def sentence(self) -> list[str]:
        self._said += 1
        return [f" {SONG}{self.name}.{self._said}.{n}" for n in range(TOKENS)]

    def sent(self, marker: bytes) -> list[Sent]:
        return [Transcript(sent.backend, sent.arrived_s, sent.pieces) for sent in super().sent(marker)]

    def _next_fault(self, request: RecordedRequest) -> Fault | None:
        if not self.misbehaves or not MARKER.search(request.body) or self._random.random() > FAULTY:
            return super()._next_fault(request)
        if not self._bag:
            self.turns += 1
            self._bag = [*every_fault(), *([RARELY] if self.turns % 4 == 1 else [])]
            self._random.shuffle(self._bag)
        fault = self._bag.pop()
        self.played[type(fault).__name__] += 1
        return fault


@dataclass(eq=False)
class Transcript(Sent):
    """What a talker sent, read as strictly as a client reads it."""

    def parts(self) -> tuple[bytes, bool]:
        """(body up to where its framing breaks, whether it is whole by its framing)."""
        head, _, rest = b"".join(data for _, data in self.pieces).partition(b"\r\n\r\n")
        lengths = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
        if len(head) > LONGEST_HEAD:
            return rest, False
        if b"transfer-encoding: chunked" in head.lower():
            return unchunked(rest)
        if len(lengths) != 1:
            return rest, False
        return rest[: int(lengths[0])], len(rest) == int(lengths[0])


def unchunked(rest: bytes) -> tuple[bytes, bool]:
    payload, at = b"", 0
    while (end := rest.find(b"\r\n", at)) > at:
        try:
            size = int(rest[at:end], 16)
        except ValueError:
            return payload, False
        if size == 0:
            return payload, rest[end:] == b"\r\n\r\n"
        payload += rest[end + 2 : end + 2 + size]
        at = end + 2 + size + 2
    return payload, False


def says_it_is_whole(kind: Kind, body: bytes) -> bool:
    """Does an answer have its dialect's own end?"""
    if not kind.stream:
        return not is_error(body)
    if kind.path.startswith("/api/"):
        return json.loads(body.splitlines()[-1]).get("done") is True
    last = body.rstrip(b"\n").rpartition(b"\n\n")[2]
    ends = {"/v1/messages": b"event: message_stop\n", "/v1/responses": b"event: response.completed\n"}
    return last.startswith(ends.get(kind.path, b"data: [DONE]"))


@dataclass(frozen=True)
class Reply:
    """One request, what its client got, and what all backends sent for it, in the order of their arrival."""

    kind: Kind
    answer: RawResponse | None
    sents: Sequence[Sent]

    @property
    def outcome(self) -> str:
        """`whole`, `told` (an error record in a stream) or `refused` (an error status); all others are wrong."""
        if self.answer is None:
            return "no answer"
        answer = self.answer
        if answer.complete and not without_error_record(answer.body)[0]:
            # Nothing but an error: a backend's own, which was held back until everybody else had failed.
            return "refused" if (answer.body, True) in [sent.parts() for sent in self.sents] else self._judged(answer)
        return self._judged(answer)

    def _judged(self, answer: RawResponse) -> str:
        verdict = judge(answer.status, answer.body, answer.ended, list(self.sents))
        if verdict in ("wrong", "refused") or answer.ended == "cut":
            return verdict if answer.ended == "complete" else f"{verdict}, cut"
        if without_error_record(answer.body)[1]:
            return "told"
        return "whole" if says_it_is_whole(self.kind, answer.body) else "wrong"

    def __repr__(self) -> str:
        sents = [(sent.backend, b"".join(data for _, data in sent.pieces)[:500]) for sent in self.sents]
        return f"<{self.kind} {self.answer and (self.answer.status, self.answer.ended, self.answer.body)} of {sents}>"


class Asker:
    """One client that keeps its connection while that is there."""

    def __init__(self, url: str, talkers: Sequence[Faulty]) -> None:
        self._url, self._talkers = url, talkers
        self._raw: RawClient | None = None

    def ask(self, kind: Kind, marker: str, model: str) -> Reply:
        answer = None
        try:
            self._raw = self._raw or RawClient(self._url, READ_S)
            answer = self._raw.request("POST", kind.path, json=asked(kind, marker, TOKENS, model))
        except (CutOff, OSError):
            self.close()
        if answer is not None and (not answer.complete or (answer.header("connection") or "").lower() == "close"):
            self.close()
        found = [sent for talker in self._talkers for sent in talker.sent(marker.encode())]
        return Reply(kind, answer, sorted(found, key=lambda sent: sent.arrived_s))

    def close(self) -> None:
        raw, self._raw = self._raw, None
        if raw is not None:
            raw.close()


class Crowd:
    """Clients that share one number of requests; each keeps its connection while that is there."""

    def __init__(self, url: str, talkers: Sequence[Faulty], seed: int) -> None:
        self._url, self._talkers, self._seed = url, talkers, seed
        self._numbers = iter(range(REQUESTS))
        self._lock = threading.Lock()
        self.replies: list[tuple[str, Reply]] = []
        self._errors: list[BaseException] = []

    def run(self) -> None:
        threads = [
            threading.Thread(target=self._ask, args=(number,), name=f"soak-{number}") for number in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _ask(self, number: int) -> None:
        draw = random.Random(self._seed + number)
        client = Asker(self._url, self._talkers)
        try:
            while (place := self._next()) is not None:
                reply = client.ask(draw.choice(KINDS), f"{CANARY}-9{place:06}", draw.choice(MODELS))
                self.replies.append((reply.outcome, reply))
        except BaseException as exc:  # the test's thread raises it
            self._errors.append(exc)
        finally:
            client.close()

    def _next(self) -> int | None:
        with self._lock:
            return next(self._numbers, None)

    def having(self, wanted: Callable[[str], bool]) -> list[tuple[str, Reply]]:
        return [pair for pair in self.replies if wanted(pair[0])]


@pytest.fixture
def soaked(redis_server: PrivateRedis, tmp_path: Path) -> Iterator[Site]:
    redis_server.flush()
    with ExitStack() as stack:
        talkers = tuple(stack.enter_context(Faulty(name, SEED + place)) for place, name in enumerate("abc"))
        yield stack.enter_context(site(tmp_path, redis_server, talkers=talkers, **LIMITS))


@pytest.mark.timeout(900)
def test_mixed_requests_over_misbehaving_backends_get_no_wrong_answer(soaked: Site) -> None:
    talkers: list[Faulty] = [each for each in soaked.talkers if isinstance(each, Faulty)]
    soaked.warm_up()
    for talker in talkers:
        talker.misbehaves = True
    crowd = Crowd(soaked.url, talkers, SEED)
    crowd.run()
    counts = Counter(name for name, _ in crowd.replies)
    print(f"seed {SEED}: {len(crowd.replies)} requests, {dict(counts)}")
    assert len(crowd.replies) == REQUESTS
    # Every answer is what one backend sent last for its request, whole; or it says that it is not.
    wrong = crowd.having(lambda name: name not in ("whole", "told", "refused"))
    assert not wrong, "\n".join(map(str, wrong[:5]))
    # It was no fair weather: all faults were met, and yet most requests found a way around them.
    names = {type(fault).__name__ for fault in every_fault()}
    assert all(names <= talker.played.keys() for talker in talkers) or REQUESTS < 1000
    assert counts["told"] > 0
    assert counts["whole"] > REQUESTS / 2
    assert_nothing_is_left(soaked)


def assert_nothing_is_left(soaked: Site) -> None:
    """Backends, leases, descriptors and threads are as they were before, and no log has what it must not have."""
    for talker in soaked.talkers:
        assert isinstance(talker, Faulty)
        talker.misbehaves = False
    soaked.assert_calm()
    soaked.assert_no_leases(deadline_s=10)
    assert soaked.ask(Kind("/api/chat", True)).verdict == "complete"
