"""Raw requests, good and bad, against the listening socket: each gets its answer, none hangs, none changes its meaning.

The requests are in `requests/`, whose README tells how to read them.
"""

from __future__ import annotations

import re
import socket
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from conformance.fakes.http import CutOff, RawClient, RawResponse
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.recorded import RecordedRequest
from tests.product import NO_BREAKER, Stand, stand

# The fake lives as long as the module, and with it the connections that Caravan keeps to it.
pytestmark = pytest.mark.leaky

FOLDER = Path(__file__).parent / "requests"
MAX_BODY = {"CARAVAN_MAX_BODY": "100000"}
# For entries that end with a time limit; in all others the client may be slow, as on a busy machine it is.
SHORT = {"CARAVAN_CLIENT_TIMEOUT": "1", "CARAVAN_KEEPALIVE": "2"}
# Bound in seconds for each read: far above the limits of the server, so that only a hang meets it.
DEADLINE_S = 15.0
NOTHING = 0
# The request after an entry; its answer can be no other one's.
PROBE = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: probe\r\n\r\n"
ESCAPE = re.compile(rb"\\(r|n|t|\\|x[0-9a-f]{2})")
PLAIN = {b"r": b"\r", b"n": b"\n", b"t": b"\t", b"\\": b"\\"}
REPEAT = re.compile(rb"\{([^{}]*)\*(\d+)\}")
METHOD = re.compile(rb"(?:^|\n|\})([A-Z]+) \S+ HTTP/1")


def raw(text: str) -> bytes:
    """The bytes that an entry's text stands for."""
    data = text.encode("ascii").replace(b"\n", b"")
    data = REPEAT.sub(lambda found: found[1] * int(found[2]), data)
    return ESCAPE.sub(lambda found: PLAIN.get(found[1]) or bytes.fromhex(found[1][1:].decode()), data)


@dataclass(frozen=True)
class Case:
    """One entry, see requests/README.md."""

    topic: str
    says: str
    sends: bytes
    answers: tuple[tuple[int, ...], ...]
    after: Literal["open", "closed", "either"]
    then: Literal["waits", "ends", "leaves"] = "waits"
    silence: bool = False
    reaches: tuple[bytes, ...] = ()
    has: tuple[str, ...] = ()
    continues: bool | None = None

    def pieces(self, way: str) -> list[bytes]:
        """What is sent at once."""
        if way == "line by line":
            return self.sends.splitlines(keepends=True)
        return [bytes([byte]) for byte in self.sends] if way == "byte by byte" else [self.sends]

    def is_head(self, number: int) -> bool:
        """Does the answer of this number belong to a HEAD?"""
        methods = METHOD.findall(self.sends)
        return number < len(methods) and methods[number] == b"HEAD"


def case_from(topic: str, entry: dict[str, Any]) -> Case:
    answers = tuple((each,) if isinstance(each, int) else tuple(each) for each in entry.pop("answers") or [NOTHING])
    lists = {name: entry.pop(name, ()) for name in ("reaches", "has")}
    made = Case(
        topic,
        sends=raw(entry.pop("sends")),
        answers=answers,
        reaches=tuple(raw(each) for each in lists["reaches"]),
        has=tuple(lists["has"]),
        **entry,
    )
    assert made.after in ("open", "closed", "either"), made.says
    assert made.then in ("waits", "ends", "leaves"), made.says
    return made


CASES = [
    case_from(path.stem, entry)
    for path in sorted(FOLDER.glob("*.toml"))
    for entry in tomllib.loads(path.read_text())["request"]
]


def named(case: Case) -> str:
    return f"{case.topic}: {case.says}"


@dataclass
class Outcome:
    """What came back for an entry."""

    answers: list[RawResponse] = field(default_factory=list)
    continues: int = 0
    open: bool = False

    @property
    def statuses(self) -> list[int]:
        return [answer.status for answer in self.answers]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("raw"), "a", ["tiny", "acme/bot:v2"], **MAX_BODY, **NO_BREAKER) as made:
        yield made


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One with short time limits."""
    with stand(tmp_path_factory.mktemp("strict"), "a", **MAX_BODY, **SHORT, **NO_BREAKER) as made:
        yield made


# --- playing -------------------------------------------------------------------------------------


def play(site: Stand, case: Case, way: str = "in one piece") -> Outcome:
    """Send an entry's bytes, read what comes, and see whether the connection goes on."""
    outcome = Outcome()
    with site.client(DEADLINE_S) as client:
        send(client, case, way)
        if case.then == "leaves":
            client.abort()
            return outcome
        for number in range(len(case.answers)):
            if not read_answer(client, outcome, case.is_head(number)):
                return outcome
        outcome.open = still_open(client, outcome, case.then == "waits" and not case.silence)
    return outcome


def send(client: RawClient, case: Case, way: str) -> None:
    """Send all of it, or as much as the server wants."""
    try:
        for piece in case.pieces(way):
            client.send(piece)
        if case.then == "ends":
            client.sock.shutdown(socket.SHUT_WR)
    except OSError:
        # It has answered and closed: what it said is still to be read.
        return


def read_answer(client: RawClient, outcome: Outcome, head_only: bool) -> bool:
    """Read one final answer and the interim ones before it; False when the connection ended instead."""
    try:
        head = client.read_until(b"\r\n\r\n")
    except CutOff:
        return False
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    assert re.fullmatch(r"HTTP/1\.[01] [1-5]\d\d( [ -~]*)?", first), f"no status line: {first!r}"
    answer = RawResponse(int(first[9:12]), [tuple(line.split(": ", 1)) for line in lines], head=head)  # type: ignore[misc]
    if answer.status < 200:
        outcome.continues += answer.status == 100
        assert answer.status == 100, f"nobody asked for {first}"
        return read_answer(client, outcome, head_only)
    if not head_only and answer.status not in (204, 304):
        answer.body = b"".join(client.iter_body(answer))
    outcome.answers.append(answer)
    return True


def still_open(client: RawClient, outcome: Outcome, asks: bool) -> bool:
    """Ask once more: nothing but the answer to that may come. False when the server has closed."""
    try:
        if asks:
            client.send(PROBE)
    except ConnectionError:
        return False
    if not read_answer(client, outcome, head_only=False):
        return False
    if outcome.answers[-1].header("x-request-id") == "probe" and outcome.answers[-1].status == 200:
        outcome.answers.pop()
    return True


# --- judging -------------------------------------------------------------------------------------


def judge(case: Case, outcome: Outcome) -> None:
    """Hold an outcome against what its entry says."""
    wanted = [each[0] if len(each) == 1 else each for each in case.answers]
    assert fits(case, outcome.statuses), f"{outcome.statuses} instead of {wanted}"
    if case.continues is not None:
        assert bool(outcome.continues) == case.continues
    assert case.after == "either" or outcome.open == (case.after == "open"), f"open: {outcome.open}"
    for answer in outcome.answers:
        assert_decent(answer)
        assert b" HTTP/1.0\r\n" not in case.sends or answer.header("transfer-encoding") is None
    if outcome.answers:
        lines = {f"{name}: {value}" for name, value in outcome.answers[-1].headers}
        assert lines >= set(case.has)
        if not outcome.open and case.then == "waits" and not case.silence:
            assert "Connection: close" in lines, "it closed without saying so"


def fits(case: Case, statuses: list[int]) -> bool:
    """A 0 stands for no answer."""
    padded = [*statuses, *[NOTHING] * (len(case.answers) - len(statuses))]
    return len(padded) == len(case.answers) and all(
        one in allowed for one, allowed in zip(padded, case.answers, strict=True)
    )


def assert_decent(answer: RawResponse) -> None:
    """No answer has two lengths, or tells what is inside."""
    names = Counter(name.lower() for name, _ in answer.headers)
    assert names["content-length"] + names["transfer-encoding"] <= 1
    assert not set(names) & {"set-cookie", "x-evil"}
    assert not re.search(rb"Traceback|gunicorn/|werkzeug|/proxy_app/|sk-secret", answer.body)


def judge_reached(case: Case, outcome: Outcome, reached: list[RecordedRequest]) -> None:
    """What a backend has got is what the entry says, each with one length and the backend's own Host."""
    choice = any(len(each) > 1 for each in case.answers)
    refused = choice and outcome.statuses[-1:] != [200]
    expected = [] if refused else list(case.reaches)
    assert [f"{r.method} {r.path} ".encode() + r.body for r in reached] == expected
    for request in reached:
        names = Counter(name.lower() for name, _ in request.headers)
        assert (names["content-length"], names["transfer-encoding"], names["host"]) == (1, 0, 1)
        assert (request.header("content-length"), request.version) == (str(len(request.body)), "HTTP/1.1")
        assert not names["x-evil"]


def taken(fake: FakeOllama) -> list[RecordedRequest]:
    """What has come to a backend for clients since the last call: the record begins anew, nothing is overlooked."""
    reached = [request for request in list(fake.requests) if not is_poll(request)]
    fake.forget_requests()
    return reached


def is_poll(request: RecordedRequest) -> bool:
    """A look of the refresher's, which has no id of a client's request; documents are fetched ahead of demand too."""
    return request.target == "/api/show" or (request.method == "GET" and request.header("x-request-id") is None)


# --- tests ---------------------------------------------------------------------------------------

WAYS = ("in one piece", "line by line", "byte by byte")
SPOKEN = [case for case in CASES if not case.silence]
SILENT = [case for case in CASES if case.silence]


def test_the_entries_are_many_and_no_two_the_same() -> None:
    names = Counter(map(named, CASES))
    sent = Counter((case.sends, case.then) for case in CASES)
    assert len(CASES) >= 120
    assert [name for name, count in (names | sent).items() if count > 1] == []


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", SPOKEN, ids=named)
def test_a_request_gets_its_answer_and_keeps_its_meaning(site: Stand, own_name: bytes, case: Case, way: str) -> None:
    case = replace(case, sends=case.sends.replace(b"{caravan}", own_name))
    try:
        outcome = play(site, case, way)
        # Whoever left without an answer may still be worked on; this answer comes after that.
        assert site.process.get("/api/version").status == 200
    finally:
        reached = taken(site.fakes[0])
    judge(case, outcome)
    judge_reached(case, outcome, reached)


@pytest.fixture(scope="module")
def own_name(site: Stand) -> bytes:
    """What this Caravan calls itself in Via."""
    assert site.post("/api/chat", {"model": "tiny", "stream": False}).status == 200
    (request,) = taken(site.fakes[0])
    return (request.header("via") or "").rpartition(" ")[2].encode()


@pytest.fixture(scope="module")
def silences(strict: Stand) -> dict[str, Outcome]:
    """All clients that fall silent, at the same time."""
    taken(strict.fakes[0])
    with ThreadPoolExecutor(len(SILENT)) as pool:
        outcomes = list(pool.map(lambda case: play(strict, case), SILENT))
    return dict(zip(map(named, SILENT), outcomes, strict=True))


@pytest.mark.parametrize("case", SILENT, ids=named)
def test_a_client_that_falls_silent_is_let_go(strict: Stand, silences: dict[str, Outcome], case: Case) -> None:
    judge(case, silences[named(case)])
    assert taken(strict.fakes[0]) == []


def test_the_server_has_met_no_bug_of_its_own(site: Stand, strict: Stand) -> None:
    for each in (site, strict):
        assert "Traceback" not in each.process.output
