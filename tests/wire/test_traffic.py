"""Running requests of all workers, seen and ended from anywhere, and what is written of those that are over.

The test's own process takes part as one more worker does, one that has no requests.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from conformance.fakes import faults
from conformance.fakes.http import CutOff, RawClient, RawResponse
from proxy_app.services.admin.in_flight import InFlight
from proxy_app.services.admin.shapes import Finished, Running
from proxy_app.services.admin.traffic import Traffic
from proxy_app.services.running import Runs
from proxy_app.store.redis import RedisGate
from proxy_app.store.running import RunningBoard
from tests.fakes.redis import PrivateRedis
from tests.product import NO_BREAKER, PATIENT, STREAMING, Stand, question, stand
from tests.wire.scripted import CHUNKED, JSON_UTF8, Packets, Silence, chunk, chunked
from tests.wire.shows import until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

CHAT = "/api/chat"
TOLD = "an operator ended this request"
MIB = 1 << 20
# From the word of an operator in another worker to the end of a backend's work: half a second to hear of it, and the
# rest for a busy machine.
LATE_S = 2.0
# Where no time is promised: only a failure takes as long.
GONE_S = 15.0
PREFIX = "traffic"


@dataclass
class Site:
    stand: Stand
    traffic: Traffic
    folder: Path

    def running(self, count: int) -> list[Running]:
        """What runs, once it is this many."""
        found: list[Running] = []

        def seen() -> bool:
            found[:], is_partial = self.traffic.running()
            return not is_partial and len(found) == count

        until(seen, f"{count} requests run")
        return found

    def the_one(self, backend: str | None = "a") -> Running:
        until(lambda: self.running(1)[0].backend == backend, f"{backend} works on it")
        return self.running(1)[0]

    def finished(self, request_id: str) -> Finished:
        found: list[Finished] = []

        def written() -> bool:
            found[:] = [each for each in self.traffic.finished(1000) if each.request_id == request_id]
            return bool(found)

        until(written, f"{request_id} is written")
        assert len(found) == 1
        return found[0]


@contextmanager
def operated(url: str, folder: Path, **changes: Any) -> Iterator[Site]:
    workers = {"WEB_CONCURRENCY": "2", "CARAVAN_REDIS_PREFIX": PREFIX, **NO_BREAKER, **PATIENT, **changes}
    with (
        stand(folder, redis_url=url, **workers) as made,
        closing(RedisGate(url, folder / "none", 10.0)) as gate,
    ):
        traffic = Traffic(InFlight(Runs(), RunningBoard(gate, PREFIX)), folder / "data")
        traffic.start()
        with closing(traffic):
            yield Site(made, traffic, folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, redis_server: PrivateRedis) -> Iterator[Site]:
    redis_server.flush()
    with operated(redis_server.url, tmp_path_factory.mktemp("traffic")) as made:
        yield made


@pytest.fixture
def site(shared: Site) -> Site:
    shared.stand.tidy()
    shared.running(0)
    return shared


def send(client: RawClient, path: str = CHAT, request_id: str = "", version: str = "HTTP/1.1", **asked: Any) -> None:
    body = json.dumps(question(path, **asked)).encode()
    named = f"X-Request-Id: {request_id}\r\n" if request_id else ""
    head = f"POST {path} {version}\r\nHost: localhost\r\n{named}Content-Length: {len(body)}\r\n\r\n"
    client.send(head.encode() + body)


# -- seeing ---------------------------------------------------------------------------------------------


def test_requests_of_all_workers_are_seen_by_any(site: Site) -> None:
    for fake in site.stand.fakes:
        fake.tokens, fake.token_delay_s = 10_000, 0.02
    with ExitStack() as stack:
        for number in range(12):
            send(stack.enter_context(site.stand.client()), request_id=f"seen-{number}", stream=True)
        running = site.running(12)
        assert {run.request_id for run in running} == {f"seen-{number}" for number in range(12)}
        assert {(run.route, run.model, run.key) for run in running} == {(CHAT, "tiny", "")}
        assert {run.backend for run in running} <= {"a", "b"}
        assert [run.started_at for run in running] == sorted((run.started_at for run in running), reverse=True)
        assert all(abs(time.time() - run.started_at) < 10 for run in running)
        until(lambda: all(run.tokens > 2 and run.first_byte_s for run in site.running(12)), "tokens are counted")
    site.running(0)


def test_a_request_without_an_answer_yet_has_no_tokens(site: Site) -> None:
    site.stand.fakes[0].fault(CHAT, faults.StallBeforeHeaders())
    with site.stand.client() as client:
        send(client)
        run = site.the_one()
        assert (run.tokens, run.first_byte_s) == (0, None)
    site.running(0)


# -- ending ---------------------------------------------------------------------------------------------


def cancel(site: Site) -> float:
    """End the one request that runs, from outside of its worker; returns how long its backend went on, in seconds."""
    run = site.the_one()
    request = site.stand.fakes[0].requests_for(run.route)[-1]
    said_s = time.monotonic()
    assert not request.client_gone.is_set()
    # An operator is told where the worker did not take notice in time, and says it again.
    until(lambda: site.traffic.cancel(run.id) or request.client_gone.is_set(), "it is ended")
    assert request.client_gone.wait(GONE_S), "the backend goes on"
    assert request.gone_after_s is not None
    return request.at + request.gone_after_s - said_s


@pytest.mark.alone
def test_an_operator_is_heard_in_time_whichever_worker_has_the_request(site: Site) -> None:
    for worker in site.stand.process.workers:
        site.stand.fakes[0].forget_requests()
        site.stand.fakes[0].fault(CHAT, faults.StallBeforeHeaders())
        with ExitStack() as stack:
            with site.stand.process.only(worker):
                # Not before: another worker could have taken the connection.
                send(stack.enter_context(site.stand.client()))
                site.stand.fakes[0].wait_for(CHAT)
            assert cancel(site) < LATE_S
        site.running(0)


@pytest.mark.parametrize("path", STREAMING)
def test_a_stream_that_is_ended_says_so_and_frees_its_backend(site: Site, path: str) -> None:
    site.stand.fakes[0].tokens, site.stand.fakes[0].token_delay_s = 10_000, 0.02
    with site.stand.client() as client:
        send(client, path, stream=True)
        head = client.read_head()
        pieces = client.iter_body(head)
        assert next(pieces)
        cancel(site)
        rest = b"".join(pieces)
    last = rest.strip().splitlines()[-1]
    assert TOLD.encode() in last
    assert b"error" in last
    assert site.stand.counts(path) == [1, 0]
    site.running(0)


@pytest.mark.parametrize("path", STREAMING)
@pytest.mark.parametrize("stream", [True, False])
def test_a_request_that_waits_is_a_503_in_its_dialect(site: Site, path: str, stream: bool) -> None:
    site.stand.fakes[0].fault(path, faults.StallBeforeHeaders())
    with site.stand.client() as client:
        send(client, path, stream=stream)
        cancel(site)
        answer = client.read_response()
        assert answer.status == 503
        error = answer.json()["error"]
        assert (error if path.startswith("/api/") else error["message"]) == TOLD
        assert answer.header("x-should-retry") == "false", "the SDKs would send it again"
        assert answer.header("retry-after") is None
        # The next request of the connection is another one.
        send(client, path, stream=stream)
        assert client.read_response().status == 200
    assert site.stand.counts(path) == [2, 0]


TOKEN = b'{"message":{"role":"assistant","content":"Hel"},"done":false}\n'
JSON_HEAD = ("Content-Type", JSON_UTF8)
LONG = b"[" + b"1," * MIB
# Stage: what the backend does, and whether the client has got something of it by then.
STAGES: dict[str, tuple[faults.Fault, bool]] = {
    "a head without a body": (Silence(chunked(CHAT, last=b"")), False),
    "half a first record": (Silence(chunked(CHAT, TOKEN[:20], last=b"")), False),
    "a stream": (Silence(chunked(CHAT, TOKEN, TOKEN, last=b"")), True),
    "half a second record": (Silence(chunked(CHAT, TOKEN, TOKEN[:20], last=b"")), True),
    "half a whole answer": (Silence(Packets([JSON_HEAD, CHUNKED], [chunk(b'{"message":')])), False),
    "a long whole answer": (Silence(Packets([JSON_HEAD, CHUNKED], [chunk(LONG)])), True),
    "a long answer with a length": (Silence(Packets([JSON_HEAD, ("Content-Length", str(9 * MIB))], [LONG])), True),
}


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize("stage", STAGES)
def test_no_stage_looks_like_a_whole_answer(site: Site, stage: str, version: str) -> None:
    fault, has_begun = STAGES[stage]
    site.stand.fakes[0].fault(CHAT, fault)
    with site.stand.client() as client:
        send(client, version=version)
        if has_begun:
            head = client.read_head()
            assert head.status == 200
            pieces = client.iter_body(head)
            assert next(pieces)
        cancel(site)
        if not has_begun:
            assert client.read_response().status == 503
        else:
            assert is_honest(head, pieces)
    site.running(0)


def is_honest(head: RawResponse, pieces: Iterator[bytes]) -> bool:
    """Does the rest end in an error record, or in a cut?"""
    rest = b""
    try:
        for piece in pieces:
            rest += piece
    except CutOff:
        return True
    return "ndjson" in (head.content_type or "") and json.loads(rest.splitlines()[-1]) == {"error": TOLD}


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
def test_a_client_that_reads_nothing_keeps_no_backend(site: Site, version: str) -> None:
    """The worker waits for its client then: in the pump, or, where the answer has no chunks, in a write."""
    name = f"deaf-{version[-1]}"
    site.stand.fakes[0].tokens = 10_000_000
    with site.stand.client() as client:
        send(client, request_id=name, version=version, stream=True)
        counts = [0]

        def is_stuck() -> bool:
            counts.append(site.the_one().tokens)
            # Longer than a list is old.
            time.sleep(0.6)
            return 1000 < counts[-2] == counts[-1]

        until(is_stuck, "its client has no room left", deadline_s=60)
        cancel(site)
        head = client.read_head()
        assert is_honest(head, client.iter_body(head))
    assert site.finished(name).outcome == "cancelled"


def test_ids_of_clients_do_not_matter(site: Site) -> None:
    """Two requests of the same name are two requests."""
    site.stand.fakes[0].tokens, site.stand.fakes[0].token_delay_s = 10_000, 0.02
    with site.stand.client() as one, site.stand.client() as two:
        for client in (one, two):
            send(client, request_id="same", stream=True)
        first, second = site.running(2)
        assert first.id != second.id
        assert not site.traffic.cancel("same")
        until(lambda: site.traffic.cancel(first.id), "it is ended")
        assert [run.id for run in site.running(1)] == [second.id]
        assert not site.traffic.cancel(first.id), "it is over"


def test_nothing_is_left_in_redis(site: Site, redis_server: PrivateRedis) -> None:
    site.stand.fakes[0].fault(CHAT, faults.StallBeforeHeaders())
    with site.stand.client() as client:
        send(client)
        cancel(site)
    with redis.Redis.from_url(redis_server.url) as direct:
        until(lambda: not direct.keys("*running*"), "all of it has faded", deadline_s=30)


@pytest.fixture(scope="module")
def beating(tmp_path_factory: pytest.TempPathFactory, redis_server: PrivateRedis) -> Iterator[Site]:
    with operated(redis_server.url, tmp_path_factory.mktemp("beats"), CARAVAN_HEARTBEAT="0.3") as made:
        yield made


@pytest.mark.parametrize("path", STREAMING)
@pytest.mark.parametrize("has_answer", [True, False])
def test_behind_a_heartbeat_it_ends_in_an_error_record(beating: Site, path: str, has_answer: bool) -> None:
    beating.stand.tidy()
    beating.running(0)
    fake = beating.stand.fakes[0]
    answer = threading.Event()
    fake.tokens, fake.token_delay_s = 10_000, 0.02
    fake.fault(path, faults.StallBeforeHeaders(answer))
    with beating.stand.client() as client:
        send(client, path, stream=True)
        pieces = client.iter_body(client.read_head())
        assert next(pieces), "what comes without an answer is a heartbeat"
        if has_answer:
            answer.set()
            until(lambda: beating.the_one().tokens > 2, "it answers")
        cancel(beating)
        last = b"".join(pieces).strip().splitlines()[-1]
    assert TOLD.encode() in last
    assert beating.stand.counts(path) == [1, 0]
    beating.running(0)


def test_what_a_heartbeat_began_as_json_ends_in_a_cut(beating: Site) -> None:
    beating.stand.tidy()
    beating.stand.fakes[0].fault(CHAT, faults.StallBeforeHeaders())
    with beating.stand.client() as client:
        send(client, stream=False)
        head = client.read_head()
        cancel(beating)
        with pytest.raises(CutOff):
            list(client.iter_body(head))
    beating.running(0)


# -- what is written --------------------------------------------------------------------------------------


def ask(site: Site, request_id: str, **asked: Any) -> RawResponse:
    with site.stand.client() as client:
        send(client, request_id=request_id, **asked)
        return client.read_response()


@pytest.mark.parametrize("stream", [True, False])
def test_a_finished_request_says_what_it_was(site: Site, stream: bool) -> None:
    name = f"fine-{stream}"
    assert ask(site, name, stream=stream).status == 200
    found = site.finished(name)
    assert (found.route, found.model, found.status, found.outcome) == (CHAT, "tiny", 200, "complete")
    assert (found.attempts, found.backend, found.explanation) == (["a"], "a", "a answered")
    assert found.tokens_in > 0
    assert found.tokens_out > 0
    assert found.tokens_per_s is not None
    assert found.first_byte_s is not None
    assert 0 < found.first_byte_s <= found.total_s < 10
    assert abs(time.time() - found.at) < 30


@pytest.mark.parametrize(
    ("fault", "explanation"),
    [
        (faults.Refuse503Busy(), "a was busy (503), b answered"),
        (faults.Error500(), "a failed (500), b answered"),
        (faults.RstBeforeHeaders(), "a broke the connection, b answered"),
        (faults.ErrorInFirstChunk(), "a began its answer with an error, b answered"),
        (faults.Status(401), "a refused Caravan (401), b answered"),
    ],
)
def test_a_failover_is_explained(site: Site, fault: faults.Fault, explanation: str) -> None:
    # A connection that had been idle gets a fresh try.
    site.stand.fakes[0].fault(CHAT, fault, times=2)
    name = f"failover-{type(fault).__name__}"
    assert ask(site, name).status == 200
    found = site.finished(name)
    assert found.explanation == explanation
    assert (found.attempts, found.backend) == (["a", "b"], "b")


def test_the_way_a_request_ended_is_explained(site: Site) -> None:
    fake = site.stand.fakes[0]
    assert ask(site, "unknown", model="nobody-has-this").status == 404
    fake.fault(CHAT, faults.StreamThen(2, faults.Rst()))
    ask(site, "cut", stream=True)
    fake.fault(CHAT, faults.StallBeforeHeaders())
    with site.stand.client() as client:
        send(client, request_id="left")
        site.the_one()
    fake.fault(CHAT, faults.StallBeforeHeaders())
    site.running(0)
    with site.stand.client() as client:
        send(client, request_id="ended")
        cancel(site)
    told = {name: site.finished(name).explanation for name in ("unknown", "cut", "left", "ended")}
    assert told == {
        "unknown": "nobody hosts the model",
        "cut": "a's answer was cut off",
        "left": "the client hung up while a worked on it",
        "ended": "an operator ended it while a worked on it",
    }


def test_the_last_minutes_are_a_chart(site: Site) -> None:
    before = sum(point.requests for point in site.traffic.chart(3600).points)
    for number in range(5):
        ask(site, f"chart-{number}")
    for number in range(5):
        site.finished(f"chart-{number}")
    chart = site.traffic.chart(3600)
    assert sum(point.requests for point in chart.points) >= before + 5
    busy = [point for point in chart.points if point.requests]
    assert all(point.first_byte_p50 and point.first_byte_p50 < 5 for point in busy[-1:])
    assert busy[-1].tokens_per_s > 0


def test_no_prompt_and_no_answer_is_written(site: Site) -> None:
    secret = "zebra-in-the-prompt"
    with site.stand.client() as client:
        send(client, request_id="secret", messages=[{"role": "user", "content": secret}])
        answer = client.read_response().lines()
    site.finished("secret")
    said = "".join(record["message"]["content"] for record in answer if "message" in record)
    data = b"".join(path.read_bytes() for path in (site.folder / "data").glob("caravan.db*"))
    assert b"secret" in data
    assert secret.encode() not in data
    assert said
    assert said.encode() not in data
