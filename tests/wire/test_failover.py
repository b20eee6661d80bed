"""Until its first byte an answer may come from any backend: every fault before that moves on to the next one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from conformance.fakes import faults
from conformance.fakes.faults import Fault
from conformance.fakes.http import CutOff, RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from tests.product import INFERENCE, NO_BREAKER, STREAMING, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

# After how long in seconds a backend that refused a connection is tried again: a fifth of CARAVAN_BREAKER_OPEN.
AFTER_A_REFUSAL_S = 1.0
# Every way to fail before the first byte of a streaming answer.
BEFORE_THE_FIRST_BYTE: dict[str, Fault] = {
    "eof": faults.EofBeforeHeaders(),
    "rst": faults.RstBeforeHeaders(),
    "busy": faults.Refuse503Busy(),
    "500": faults.Error500(),
    "502": faults.Status(502, "<html>bad gateway</html>", (("Content-Type", "text/html"),)),
    "503": faults.Status(503, '{"error":"loading"}'),
    "429": faults.Status(429, '{"error":"slow down"}'),
    "error record first": faults.ErrorInFirstChunk(),
    "garbage after the head": faults.GarbageAfter200(),
    "head, then rst": faults.StreamThen(0, faults.Rst),
    "head, then eof": faults.StreamThen(0, faults.Eof),
    "head, then half a chunk": faults.StreamThen(0, faults.HalfChunk),
    "two lengths": faults.DoubleContentLength(),
    "redirect": faults.Redirect(),
    "401": faults.Status(401, '{"error":"unauthorized"}'),
    "403": faults.Status(403, b""),
    "a header without end": faults.HugeHeader(),
    "404 of a listed model": faults.Status(404, '{"error":"model \'tiny\' not found"}'),
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("failover"), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


def is_whole(path: str, answer: RawResponse) -> bool:
    """Does an answer carry its dialect's own end, and no error?"""
    if answer.status != 200 or not answer.complete or b'"error":{' in answer.body or b'{"error":"' in answer.body:
        return False
    kind = answer.content_type or ""
    if "ndjson" in kind:
        return bool(answer.lines()[-1]["done"])
    if "event-stream" not in kind:
        return isinstance(answer.json(), dict)
    ends = {"/v1/messages": b"message_stop", "/v1/responses": b"response.completed"}
    return ends.get(path, b"data: [DONE]") in answer.body


# --- one fault, one failover ---------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("name", BEFORE_THE_FIRST_BYTE)
def test_a_fault_before_the_first_byte_moves_on_to_the_next_backend(site: Stand, name: str, stream: bool) -> None:
    site.fakes[0].fault("/api/chat", BEFORE_THE_FIRST_BYTE[name], times=None)
    answer = site.post("/api/chat", question("/api/chat", stream=stream))
    assert is_whole("/api/chat", answer), answer
    assert text_of(answer) == "Hello from b."
    assert_moved_on(site, "/api/chat")


def text_of(answer: RawResponse) -> str:
    return "".join(record["message"]["content"] for record in answer.lines())


def assert_moved_on(site: Stand, path: str) -> None:
    """The second backend was asked once; the first perhaps twice: on a reused connection and on a fresh one."""
    first, second = site.counts(path)
    assert first in (1, 2)
    assert second == 1


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("name", ["rst", "busy", "500"])
def test_every_route_fails_over(site: Stand, path: str, name: str) -> None:
    site.fakes[0].fault(path, BEFORE_THE_FIRST_BYTE[name], times=None)
    assert is_whole(path, site.post(path))
    assert_moved_on(site, path)


@dataclass(frozen=True)
class ErrorInTwoPackets(Fault):
    """A stream that begins with an error record, the second half of it once the first was read."""

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.send(exchange.head(exchange.plan()) + b'10\r\n{"er')
        await exchange.wait(0.05)
        await exchange.send(b'ror":"boom"}\n\r\n0\r\n\r\n')
        exchange.close()


def test_an_error_record_in_two_packets_moves_on(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", ErrorInTwoPackets())
    answer = site.post("/api/chat")
    assert is_whole("/api/chat", answer), answer
    assert text_of(answer) == "Hello from b."


def test_a_connection_that_died_while_idle_costs_no_failover(site: Stand) -> None:
    assert is_whole("/api/chat", site.post("/api/chat"))
    site.fakes[0].fault("/api/chat", faults.EofBeforeHeaders(), times=1)
    assert text_of(site.post("/api/chat")) == "Hello from a."
    assert site.counts("/api/chat") == [3, 0]


@pytest.mark.parametrize("path", STREAMING)
def test_a_first_chunk_that_is_an_error_moves_on_in_every_dialect(site: Stand, path: str) -> None:
    site.fakes[0].fault(path, faults.ErrorInFirstChunk())
    assert is_whole(path, site.post(path, question(path, stream=True)))
    assert site.counts(path) == [1, 1]


@pytest.mark.parametrize("then", [faults.Rst, faults.Eof, faults.HalfChunk, faults.Garbage], ids=lambda e: e.__name__)
@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions", "/v1/messages"])
def test_a_whole_answer_that_is_cut_fails_over(site: Stand, path: str, then: type[faults.Ending]) -> None:
    site.fakes[0].fault(path, faults.StreamThen(0, then))
    answer = site.post(path, question(path, stream=False))
    assert is_whole(path, answer), answer
    assert site.counts(path) == [1, 1]


def test_a_whole_answer_that_is_shorter_than_its_length_fails_over(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.LongContentLength())
    answer = site.post("/api/chat", question("/api/chat", stream=False))
    assert is_whole("/api/chat", answer)
    assert answer.json()["message"]["content"] == "Hello from b."


def test_an_answer_longer_than_its_length_never_leaks_into_the_next_one(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.ShortContentLength())
    first = site.post("/api/chat", question("/api/chat", stream=False))
    second = site.post("/api/chat", question("/api/chat", stream=False))
    assert is_whole("/api/chat", second), second
    # What came of the first one is whatever that length says, or the other backend's answer.
    assert first.complete


def test_a_large_whole_answer_up_to_1_mib_fails_over(site: Stand) -> None:
    text = "x" * 900_000
    body = json.dumps({"embeddings": [], "padding": text}).encode()
    site.fakes[0].fault("/api/embed", CutAfter(body[:-10], announced=len(body)))
    site.fakes[1].fault("/api/embed", faults.Status(200, body))
    answer = site.post("/api/embed")
    assert (answer.status, answer.ended, answer.body == body) == (200, "complete", True)
    assert site.counts("/api/embed") == [1, 1]


@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_an_answer_above_1_mib_that_is_cut_is_cut_visibly(site: Stand, framing: str) -> None:
    body = json.dumps({"embeddings": [], "padding": "x" * 3_000_000}).encode()
    announced = len(body) if framing == "length" else None
    for fake in site.fakes:
        fake.fault("/api/embed", CutAfter(body[:-10], announced))
    answer = site.post("/api/embed")
    assert answer.status == 200
    assert answer.ended == "cut"
    assert body.startswith(answer.body)
    # It had begun: nobody else is asked.
    assert site.counts("/api/embed") == [1, 0]


@dataclass(frozen=True)
class CutAfter(Fault):
    """A JSON answer that breaks off after these bytes."""

    body: bytes = field(repr=False)
    announced: int | None = None

    async def play(self, exchange: faults.Exchange) -> None:
        framing = (
            ("Transfer-Encoding", "chunked") if self.announced is None else ("Content-Length", str(self.announced))
        )
        head = faults.head_bytes(200, [("Content-Type", "application/json; charset=utf-8"), framing])
        await exchange.send(head)
        for start in range(0, len(self.body), 60_000):
            piece = self.body[start : start + 60_000]
            await exchange.send(faults.chunk(piece) if self.announced is None else piece)
        exchange.close()


# --- whose fault it is ---------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_a_machine_that_hangs_loses_its_requests_once_it_is_marked_down(site: Stand, stream: bool) -> None:
    """Where another one holds the model; nothing of an answer has come."""
    a, _ = site.fakes
    with ThreadPoolExecutor(1) as pool:
        a.fault("/api/chat", faults.StallBeforeHeaders())
        answer = pool.submit(site.post, "/api/chat", question("/api/chat", stream=stream))
        a.wait_for("/api/chat")
        polls = a.fault("/api/tags", faults.Error500(), times=None)
        assert text_of(answer.result(30)) == "Hello from b."
    assert site.counts("/api/chat") == [1, 1]
    polls.remove()
    site.wait_seen(a)


def test_a_machine_that_is_marked_down_keeps_what_nobody_else_can_do(site: Stand) -> None:
    a, _ = site.fakes
    with ThreadPoolExecutor(1) as pool:
        go_on = threading.Event()
        a.fault("/api/chat", faults.StallBeforeHeaders(go_on))
        answer = pool.submit(site.post, "/api/chat", question("/api/chat", "only-a", stream=False))
        a.wait_for("/api/chat")
        polls = a.fault("/api/tags", faults.Error500(), times=None)
        site.wait_unseen(a)
        polls.remove()
        go_on.set()
        assert text_of(answer.result(30)) == "Hello from a."
    site.wait_seen(a)


@pytest.mark.parametrize("path", ["/api/generate", "/api/chat"])
@pytest.mark.parametrize("stay", [0, "0s"])
def test_who_unloads_a_model_unloads_it_everywhere(site: Stand, path: str, stay: int | str) -> None:
    for fake in site.fakes:
        fake.store.load("tiny")
    answer = site.post(path, {"model": "tiny", "keep_alive": stay})
    assert answer.lines()[-1]["done_reason"] == "unload"
    left = [model.name for fake in site.fakes for model, _ in fake.store.resident()]
    assert not [name for name in left if name.startswith("tiny")]


def test_a_question_that_ends_the_stay_of_its_model_goes_to_one_backend(site: Stand) -> None:
    assert site.post("/api/chat", question("/api/chat", keep_alive=0)).status == 200
    assert site.counts("/api/chat") == [1, 0]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_the_same_500_from_two_backends_is_the_clients_own_and_passed_on(site: Stand, stream: bool) -> None:
    asked = question("/api/chat", stream=stream, options={"num_ctx": "many"})
    answer = site.post("/api/chat", asked)
    assert answer.status == 500
    assert answer.json() == {"error": 'option "num_ctx" must be of type integer'}
    assert site.counts("/api/chat") == [1, 1]


@pytest.mark.parametrize("path", STREAMING)
def test_the_same_error_record_from_two_backends_is_passed_on(site: Stand, path: str) -> None:
    for fake in site.fakes:
        fake.fault(path, faults.ErrorInFirstChunk("your prompt is at fault"))
    answer = site.post(path, question(path, stream=True))
    assert answer.complete
    assert b"your prompt is at fault" in answer.body
    assert site.counts(path) == [1, 1]
    for fake in site.fakes:
        fake.wait_idle()


def test_different_500s_show_the_best_backends_own_answer(site: Stand) -> None:
    site.fakes[0].fault("/api/chat", faults.Error500("first"))
    site.fakes[1].fault("/api/chat", faults.Error500("second"))
    answer = site.post("/api/chat")
    assert (answer.status, answer.json()) == (500, {"error": "first"})


def test_busy_everywhere_is_shown_as_busy(site: Stand) -> None:
    for fake in site.fakes:
        fake.fault("/api/chat", faults.Refuse503Busy())
    answer = site.post("/api/chat")
    text = "server busy, please try again.  maximum pending requests exceeded"
    assert (answer.status, answer.json()) == (503, {"error": text})


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("name", ["401", "403", "redirect"])
def test_a_backend_that_refuses_caravan_is_never_shown(site: Stand, path: str, name: str) -> None:
    for fake in site.fakes:
        fake.fault(path, BEFORE_THE_FIRST_BYTE[name])
    answer = site.post(path)
    assert answer.status == 502
    assert answer.header("location") is None
    assert b"unauthorized" not in answer.body
    assert b"elsewhere" not in answer.body
    assert answer.json()["error"]


def test_a_400_is_passed_on_from_the_first_backend(site: Stand) -> None:
    answer = site.post("/api/chat", question("/api/chat", think="often"))
    assert answer.status == 400
    assert site.counts("/api/chat") == [1, 0]


def test_the_only_holder_that_lost_its_model_is_asked_once_more(site: Stand) -> None:
    lost = faults.Status(404, '{"error":"model \'only-b\' not found"}')
    site.fakes[1].fault("/api/chat", lost, times=1)
    assert is_whole("/api/chat", site.post("/api/chat", question("/api/chat", "only-b")))
    assert site.counts("/api/chat") == [0, 2]
    site.fakes[1].fault("/api/chat", lost, times=None)
    answer = site.post("/api/chat", question("/api/chat", "only-b"))
    assert (answer.status, answer.json()) == (404, {"error": "model 'only-b' not found"})
    assert site.counts("/api/chat") == [0, 4]


def test_at_most_three_backends_are_asked(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("four"), ["a", "b", "c", "d"], **NO_BREAKER) as four:
        for fake in four.fakes:
            fake.fault("/api/chat", faults.Error500(f"boom {fake.name}"), times=None)
        assert four.post("/api/chat").json() == {"error": "boom a"}
        assert four.counts("/api/chat") == [1, 1, 1, 0]


# --- death and return ----------------------------------------------------------------------------


def test_a_killed_backend_is_tried_once_and_then_left_alone_until_it_is_back(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    as_shipped = {"CARAVAN_POLL_INTERVAL": "2", "CARAVAN_DOWN_POLL_INTERVAL": "1"}
    with stand(tmp_path_factory.mktemp("killed"), **as_shipped) as two:
        a = two.fakes[0]
        assert two.post("/api/chat").status == 200
        assert two.counts("/api/chat") == [1, 0]
        a.kill()
        killed_s = time.monotonic()
        for _ in range(10):
            assert is_whole("/api/chat", two.post("/api/chat"))
        took_s = time.monotonic() - killed_s
        # On a machine that needs more than a second for ten requests, it may be tried once a second.
        assert tries_of("a", two, requests=11) - 1 <= 1 + took_s // AFTER_A_REFUSAL_S
        a.restart()
        two.process.wait_until(lambda: asks_first(two, a), "a serves again", 20)


def tries_of(name: str, site: Stand, requests: int) -> int:
    """How many requests were sent, or tried to be sent, to a backend, as the log tells of so many in all."""

    def attempts() -> list[list[str]]:
        whole = site.process.output.rpartition("\n")[0].splitlines()
        return [json.loads(line)["attempts"] for line in whole if '"attempts"' in line]

    site.process.wait_until(lambda: len(attempts()) == requests, "all log lines are written")
    return sum(each.count(name) for each in attempts())


def asks_first(site: Stand, fake: FakeOllama) -> bool:
    before = fake.count("/api/chat")
    site.post("/api/chat")
    return fake.count("/api/chat") > before


def test_five_failures_in_a_row_open_the_breaker_and_a_real_request_closes_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    # Open for 5 s as shipped, of which the three requests after the failures need a fraction.
    with stand(tmp_path_factory.mktemp("breaker")) as two:
        a, _ = two.fakes
        a.fault("/api/chat", faults.RstBeforeHeaders(), times=5)
        for _ in range(8):
            assert is_whole("/api/chat", two.post("/api/chat"))
        assert a.count("/api/chat") == 5
        two.process.wait_until(lambda: asks_first(two, a), "a is tried again", 20)
        for _ in range(3):
            assert asks_first(two, a)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Three equal backends in config order, with the breaker as shipped."""
    with stand(tmp_path_factory.mktemp("three"), "abc") as made:
        yield made


def test_what_two_backends_say_alike_opens_no_breaker(three: Stand) -> None:
    three.tidy()
    wrong = question("/api/chat", options={"num_ctx": "many"})
    for _ in range(8):
        assert three.post("/api/chat", wrong).status == 500
    assert three.counts("/api/chat") == [8, 8, 0]
    assert asks_first(three, three.fakes[0])


def test_busy_is_load_and_opens_no_breaker(three: Stand) -> None:
    three.tidy()
    three.fakes[0].fault("/api/chat", faults.Refuse503Busy(), times=8)
    for _ in range(8):
        assert is_whole("/api/chat", three.post("/api/chat"))
    assert three.counts("/api/chat") == [8, 8, 0]
    assert asks_first(three, three.fakes[0])


# --- 200 chats through a storm -------------------------------------------------------------------


@dataclass
class Tally:
    """What became of many chats."""

    whole: int = 0
    ended_in_error: int = 0
    wrong: list[str] = field(default_factory=list)


def test_no_chat_whose_answer_had_not_begun_fails_while_a_backend_misbehaves(three: Stand) -> None:
    three.tidy()
    for fake in three.fakes:
        fake.tokens, fake.token_delay_s = 8, 0.01
    tally = storm(three, 200, 16)
    assert tally.wrong == []
    assert tally.whole + tally.ended_in_error == 200
    # Only what was on its way at the one kill may have ended so.
    assert tally.ended_in_error <= 16


def storm(site: Stand, chats: int, at_once: int) -> Tally:
    """Send chats, and let the first backend go through every state meanwhile, each for some of the chats."""
    victim = site.fakes[0]
    steps = misbehaviours(victim)
    tally, lock = Tally(), threading.Lock()
    begun = iter(range(chats))

    def one(number: int) -> None:
        with lock:
            at = next(begun)
            if at and at % (chats // (len(steps) + 1)) == 0 and (at // (chats // (len(steps) + 1))) <= len(steps):
                steps[at // (chats // (len(steps) + 1)) - 1]()
        judge(site, stream=number % 2 == 0, tally=tally, lock=lock)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(one, range(chats)))
    return tally


def misbehaviours(victim: FakeOllama) -> list[Callable[[], object]]:
    def behave(fault: Fault) -> Callable[[], object]:
        def step() -> None:
            victim.clear_faults()
            victim.fault("/api/chat", fault, times=None)

        return step

    return [
        victim.kill,
        victim.restart,
        behave(faults.Refuse503Busy()),
        behave(faults.Error500()),
        behave(faults.EofBeforeHeaders()),
        behave(faults.RstBeforeHeaders()),
        victim.clear_faults,
    ]


def judge(site: Stand, *, stream: bool, tally: Tally, lock: threading.Lock) -> None:
    try:
        answer = fetch(site.url + "/api/chat", "POST", json=question("/api/chat", stream=stream))
    except (CutOff, OSError) as exc:
        with lock:
            tally.wrong.append(f"stream={stream}: {exc!r}")
        return
    cut_in_stream = stream and answer.complete and answer.body.count(b"\n") > 1 and "error" in answer.lines()[-1]
    with lock:
        if is_whole("/api/chat", answer):
            tally.whole += 1
        elif cut_in_stream and answer.status == 200:
            tally.ended_in_error += 1
        else:
            tally.wrong.append(f"stream={stream}: {answer.status} {answer.ended} {answer.body[-300:]!r}")
