"""What passes through the relay, and what does not: bytes, headers, names, forms, and who is asked."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from conformance.fakes import faults
from conformance.fakes.faults import Fault
from conformance.fakes.http import CutOff, RawClient, RawResponse, fetch
from conformance.fakes.ollama import FakeModel, FakeOllama
from tests.fakes.procs import is_alive
from tests.fakes.redis import PrivateRedis
from tests.product import INFERENCE, NO_BREAKER, PATIENT, STREAMING, Stand, backends_of, question, served, stand
from tests.wire.scripted import AsPlanned, Halting, is_streamed

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

CHAT = "/api/chat"
# Written by each server itself.
OF_THE_CONNECTION = {"date", "server", "connection", "x-request-id", "transfer-encoding", "content-length"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("relay"), models=["tiny", "acme/bot:v2"], **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


class Scripted(Fault):
    """The same bytes for every asker: records at a time, each in a chunk of its own."""

    def __init__(self, content_type: str, records: list[bytes], *more: tuple[str, str], status: int = 200) -> None:
        self._head = [("Content-Type", content_type), *more, ("Transfer-Encoding", "chunked")]
        self._records, self._status = records, status

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.send(faults.head_bytes(self._status, self._head))
        for record in self._records:
            await exchange.send(faults.chunk(record))
            await exchange.wait(0.001)
        await exchange.send(faults.LAST_CHUNK)


# --- bytes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("path", STREAMING)
def test_an_answer_is_what_the_backend_itself_says(site: Stand, path: str, stream: bool) -> None:
    asked = question(path, stream=stream)
    direct = fetch(site.fakes[0].url + path, "POST", json=asked)
    relayed = site.post(path, asked)
    assert (relayed.status, relayed.ended) == (direct.status, "complete")
    assert own_headers(relayed) == own_headers(direct)
    assert steady(relayed) == steady(direct)


def own_headers(answer: RawResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers if name.lower() not in OF_THE_CONNECTION}


def steady(answer: RawResponse) -> bytes:
    """A body without what differs on every call: ids, times and durations."""
    without_ids = re.sub(rb"(msg|resp|req|cmpl)[_-][0-9a-f]+", b"id", answer.body)
    return re.sub(rb"[0-9][0-9.]*", b"0", without_ids)


FIRST = {"application/x-ndjson": b'{"a":1}\n', "text/event-stream": b"data: 1\n\n"}
END = {"application/x-ndjson": b'{"done":true}', "text/event-stream": b"data: [DONE]\n\n"}


@pytest.mark.parametrize("kind", ["application/x-ndjson", "text/event-stream", "text/event-stream; charset=utf-8"])
def test_bytes_pass_as_they_came(site: Stand, kind: str) -> None:
    records = [
        b'{"a":1}\n',
        b"\xff\x00 not utf-8\r\n\n",
        b"x" * 70_000,
        b"0\r\n\r\n",
        "\u2028\u00e9\n".encode(),
        b"\n" + END[kind.partition(";")[0]],
    ]
    records[0] = FIRST[kind.partition(";")[0]]
    site.fakes[0].fault(CHAT, Scripted(kind, records))
    answer = site.post(CHAT)
    assert (answer.status, answer.ended, answer.content_type) == (200, "complete", kind)
    assert answer.body == b"".join(records)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5_000_000])
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_a_whole_answer_of_any_size_passes_as_it_came(site: Stand, size: int, framing: str) -> None:
    body = os.urandom(size)
    kind = "application/octet-stream"
    if framing == "chunks":
        pieces = [body[start : start + 60_000] for start in range(0, size, 60_000)]
        site.fakes[0].fault("/api/embed", Scripted(kind, pieces))
    else:
        site.fakes[0].fault("/api/embed", faults.Status(200, body, (("Content-Type", kind),)))
    answer = site.post("/api/embed")
    assert (answer.status, answer.ended) == (200, "complete")
    assert answer.body == body
    assert answer.content_type == kind


def test_a_request_body_passes_as_it_came(site: Stand) -> None:
    body = b'{ "model":"tiny",\r\n "messages" : [],"x":1e400, "\\u00e9":"\xc3\xa9", "x":2}  \n'
    with site.client() as client:
        assert client.request("POST", CHAT, body, {"Content-Type": "text/weird; a=b"}).status == 200
    request = site.fakes[0].requests_for(CHAT)[0]
    assert request.body == body
    assert request.header("content-type") == "text/weird; a=b"


def test_a_chunked_request_body_goes_on_with_a_length(site: Stand) -> None:
    body = json.dumps(question(CHAT)).encode()
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in (body[:7], body[7:])) + b"0\r\n\r\n"
    with site.client() as client:
        assert client.request("POST", CHAT, chunks, {"Transfer-Encoding": "chunked"}).complete
    request = site.fakes[0].requests_for(CHAT)[0]
    assert request.body == body
    assert request.header("content-length") == str(len(body))
    assert request.header("transfer-encoding") is None


def test_a_query_goes_on_with_its_request(site: Stand) -> None:
    assert site.post(f"{CHAT}?a=%20b&a=c", question(CHAT)).status == 200
    assert site.fakes[0].requests_for(CHAT)[0].path == f"{CHAT}?a=%20b&a=c"


@pytest.mark.parametrize("path", STREAMING)
def test_a_token_is_with_the_client_while_the_backend_is_silent(site: Stand, path: str) -> None:
    go_on = threading.Event()
    site.fakes[0].fault(path, OneByOne(go_on))
    with site.client() as client:
        client.send_request("POST", path, json.dumps(question(path, stream=True)).encode())
        pieces = client.iter_body(client.read_head())
        # The fake says nothing more before we have what it said: a relay that waits would hang here.
        assert next(pieces) == b"data: 1\n\n"
        go_on.set()
        assert b"".join(pieces) == b"data: [DONE]\n\n"


class OneByOne(Fault):
    """Two records; the second when the test has got the first."""

    def __init__(self, go_on: threading.Event) -> None:
        self._go_on = go_on

    async def play(self, exchange: faults.Exchange) -> None:
        head = faults.head_bytes(200, [("Content-Type", "text/event-stream"), ("Transfer-Encoding", "chunked")])
        await exchange.send(head + faults.chunk(b"data: 1\n\n"))
        await exchange.wait(self._go_on)
        await exchange.send(faults.chunk(b"data: [DONE]\n\n") + faults.LAST_CHUNK)


def test_one_connection_carries_many_requests_and_so_does_the_one_to_the_backend(site: Stand) -> None:
    with site.client() as client:
        for path in (*INFERENCE, *INFERENCE):
            assert client.request("POST", path, json=question(path)).complete
    site.fakes[0].wait_idle()
    # One for the relay, and those of the refresher's polls.
    assert site.fakes[0].open_connections <= 3


def test_a_backend_that_ends_its_stream_with_the_connection_is_relayed(site: Stand, tmp_path: Path) -> None:
    said = b'{"model":"tiny","message":{"content":"hi"},"done":false}\n{"model":"tiny","done":true}\n'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n"
    assert relayed_raw(site, head + said) == (said, True)
    body, whole = relayed_raw(site, head + said[:40])
    assert not whole or b'"error"' in body


def relayed_raw(site: Stand, data: bytes) -> tuple[bytes, bool]:
    class Bytes(Fault):
        async def play(self, exchange: faults.Exchange) -> None:
            await exchange.send(data)
            exchange.close()

    for fake in site.fakes:
        fake.fault(CHAT, Bytes())
    answer = site.post(CHAT)
    for fake in site.fakes:
        fake.clear_faults()
    return answer.body, answer.complete and answer.status == 200


# --- headers -------------------------------------------------------------------------------------

SENT = {
    "Accept": "application/x-ndjson",
    "Accept-Encoding": "zstd",
    "Authorization": "Bearer sk-client",
    "Connection": "keep-alive, X-Hop",
    "Cookie": "session=1",
    "Forwarded": "for=1.2.3.4",
    "Keep-Alive": "timeout=5",
    "Origin": "http://localhost:3000",
    "Proxy-Authorization": "Basic eA==",
    "Referer": "http://localhost:3000/x",
    "TE": "trailers",
    "User-Agent": "some-client/1.0",
    "X-Api-Key": "sk-client",
    "X-Custom": "kept",
    "X-Forwarded-For": "1.2.3.4",
    "X-Hop": "dropped",
    "X-Request-Id": "from-the-client.1",
}
KEPT = {"accept": SENT["Accept"], "accept-encoding": "zstd", "user-agent": SENT["User-Agent"], "x-custom": "kept"}
DROPPED = (
    "authorization",
    "cookie",
    "forwarded",
    "keep-alive",
    "origin",
    "proxy-authorization",
    "referer",
    "te",
    "x-api-key",
    "x-hop",
)


def received(site: Stand, headers: dict[str, str]) -> dict[str, str]:
    with site.client() as client:
        assert client.request("POST", CHAT, json=question(CHAT), headers=headers).status == 200
    return {name.lower(): value for name, value in site.fakes[0].requests_for(CHAT)[0].headers}


def test_a_request_keeps_its_own_headers_and_loses_those_of_the_connection_and_all_credentials(site: Stand) -> None:
    got = received(site, SENT)
    assert {name: got.get(name) for name in KEPT} == KEPT
    assert [name for name in DROPPED if name in got] == []
    assert "sk-client" not in str(got)
    assert got["host"] == f"127.0.0.1:{site.fakes[0].port}"
    assert re.fullmatch(r"1\.1 caravan-[0-9a-f]{8}", got["via"])
    assert got["x-forwarded-for"] == "127.0.0.1"
    assert got["x-request-id"] == "from-the-client.1"


def test_nothing_is_said_on_the_clients_behalf(site: Stand) -> None:
    got = received(site, {})
    own = {"via", "x-request-id", "x-forwarded-for", "x-forwarded-proto"}
    assert set(got) == {"host", "content-length", "content-type"} | own
    assert len(got["x-request-id"]) == 32


@pytest.mark.parametrize("given", ["ok-1", "a b", "x" * 129, "h\u00e9", ""])
def test_a_request_id_is_echoed_where_it_is_harmless(site: Stand, given: str) -> None:
    with site.client() as client:
        answer = client.request("POST", CHAT, json=question(CHAT), headers={"X-Request-Id": given})
    echoed = answer.header("x-request-id")
    assert echoed == "ok-1" if given == "ok-1" else echoed != given
    assert site.fakes[0].requests_for(CHAT)[0].header("x-request-id") == echoed
    assert [name.lower() for name, _ in answer.headers].count("x-request-id") == 1


def test_an_answer_loses_cookies_and_the_headers_of_its_connection(site: Stand) -> None:
    more = [
        ("Set-Cookie", "a=b"),
        ("Connection", "close, X-Hop"),
        ("X-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Alt-Svc", 'h3=":443"'),
        ("Server", "nginx"),
        ("X-Custom", "one"),
        ("X-Custom", "two"),
    ]
    site.fakes[0].fault(CHAT, Scripted("application/x-ndjson", [b'{"done":true}\n'], *more))
    answer = site.post(CHAT)
    names = [name.lower() for name, _ in answer.headers]
    assert {"set-cookie", "x-hop", "keep-alive", "alt-svc"}.isdisjoint(names)
    assert [value for name, value in answer.headers if name == "X-Custom"] == ["one", "two"]
    assert (answer.header("server"), names.count("date"), names.count("connection")) == ("gunicorn", 1, 1)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The first backend has a token and a header of its own, the second another digest of the common model."""
    common, other = FakeModel("tiny"), FakeModel("tiny", digest="f" * 64)
    with ExitStack() as stack:
        fakes = [
            stack.enter_context(FakeOllama(n, [m, f"only-{n}"]))
            for n, m in zip("abc", (common, other, common), strict=True)
        ]
        configured = json.loads(backends_of(fakes))
        configured[0] |= {"auth_token": "sk-backend", "headers": {"x-tenant": "one"}}
        folder = tmp_path_factory.mktemp("mixed")
        yield stack.enter_context(served(fakes, folder, OLLAMA_BACKENDS=json.dumps(configured), **NO_BREAKER))


def test_a_backends_own_token_and_headers_are_sent_to_it_alone(mixed: Stand) -> None:
    mixed.tidy()
    a, b, _ = mixed.fakes
    a.wait_for("/api/tags")
    headers = {"Authorization": "Bearer sk-client", "X-Tenant": "two"}
    for name in ("only-a", "only-b"):
        assert mixed.post(CHAT, question(CHAT, name), headers=headers).status == 200
    own = [(name.lower(), value) for name, value in a.requests_for(CHAT)[0].headers]
    assert [pair for pair in own if pair[0] == "authorization"] == [("authorization", "Bearer sk-backend")]
    assert [pair for pair in own if pair[0] == "x-tenant"] == [("x-tenant", "one")]
    assert a.requests_for("/api/tags")[0].header("authorization") == "Bearer sk-backend"
    assert b.requests_for(CHAT)[0].header("authorization") is None
    assert "sk-" not in mixed.process.output


# --- names ---------------------------------------------------------------------------------------

SPELLINGS = {
    "tiny": ["tiny", "tiny:latest", "TINY", "Tiny:Latest", "library/tiny", "registry.ollama.ai/library/tiny:latest"],
    "acme/bot:v2": ["acme/bot:v2", "ACME/Bot:V2", "registry.ollama.ai/acme/bot:v2"],
}


@pytest.mark.parametrize("spelling", [s for each in SPELLINGS.values() for s in each])
def test_every_spelling_of_a_name_reaches_its_model_and_stays_as_it_is(site: Stand, spelling: str) -> None:
    answer = site.post(CHAT, question(CHAT, spelling))
    assert answer.status == 200
    assert site.fakes[0].requests_for(CHAT)[0].json()["model"] == spelling
    assert answer.lines()[0]["model"] == spelling


@pytest.mark.parametrize("path", INFERENCE)
def test_each_route_asks_the_one_backend_that_hosts_the_model(site: Stand, path: str) -> None:
    assert site.post(path, question(path, "only-b")).status == 200
    assert site.counts(path) == [0, 1]


# --- forms ---------------------------------------------------------------------------------------

TRANSCRIPTIONS = "/v1/audio/transcriptions"
MULTIPART = (
    b'--XX\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n'
    b"RIFF\r\n--X\x00\xff\r\n"
    b'--XX\r\nContent-Disposition: form-data; name="model"\r\n\r\nonly-b\r\n--XX--\r\n'
)


def test_a_multipart_form_names_its_model_and_passes_as_it_came(site: Stand) -> None:
    content_type = 'multipart/form-data; charset=utf-8; boundary="XX"'
    with site.client() as client:
        answer = client.request("POST", TRANSCRIPTIONS, MULTIPART, {"Content-Type": content_type})
    assert (answer.status, answer.json()) == (200, {"text": "Hello from b."})
    request = site.fakes[1].requests_for(TRANSCRIPTIONS)[0]
    assert (request.body, request.header("content-type")) == (MULTIPART, content_type)


@pytest.mark.parametrize(
    ("content_type", "body", "query"),
    [
        ("application/x-www-form-urlencoded", b'{"model":"only-b","messages":[]}', ""),
        ("application/x-www-form-urlencoded", b"x=1&model=only-b", ""),
        ("application/x-www-form-urlencoded", b"x=1", "?model=only-b"),
        ("application/json", b'{"model":"only-b"}', "?model=only-a"),
        ("multipart/form-data; boundary=XX", MULTIPART, "?other=only-a"),
    ],
    ids=["json called a form", "form", "query", "json before query", "multipart"],
)
def test_a_model_is_found_in_every_form(site: Stand, content_type: str, body: bytes, query: str) -> None:
    for fake in site.fakes:
        fake.fault(CHAT, faults.Status(200, "{}"))
    with site.client() as client:
        assert client.request("POST", CHAT + query, body, {"Content-Type": content_type}).status == 200
    assert site.counts(CHAT) == [0, 1]
    assert site.fakes[1].requests_for(CHAT)[0].body == body


# --- who is asked --------------------------------------------------------------------------------


def test_config_order_is_respected_also_under_load(site: Stand) -> None:
    site.fakes[0].tokens, site.fakes[0].token_delay_s = 5, 0.02
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: site.post(CHAT), range(24)))
    assert site.counts(CHAT) == [24, 0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory, redis_server: PrivateRedis) -> Iterator[Stand]:
    """Two workers, a Redis, and three equal backends."""
    redis_server.flush()
    folder, equal = tmp_path_factory.mktemp("pair"), {"priority": 0}
    changes = {"WEB_CONCURRENCY": "2", **PATIENT}
    with stand(folder, "abc", redis_url=redis_server.url, backends=equal, **changes) as made:
        yield made


def test_equal_backends_get_the_next_request_by_fewest_in_flight_over_all_workers(pair: Stand) -> None:
    pair.tidy()
    fill_evenly(pair, 12)


def fill_evenly(site: Stand, total: int) -> None:
    """Hold requests in flight, one more at a time: each has to go where the fewest are."""
    go_on = threading.Event()
    for fake in site.fakes:
        fake.fault(CHAT, faults.StallBeforeHeaders(go_on), times=None)
    with ExitStack() as stack:
        waiting = [stack.enter_context(site.client()) for _ in range(total)]
        for number, client in enumerate(waiting, 1):
            client.send_request("POST", CHAT, json.dumps(question(CHAT)).encode())
            # One after the other: each is in flight before the next one is sent.
            wait_total(site, number)
            assert max(site.counts(CHAT)) - min(site.counts(CHAT)) <= 1
        go_on.set()
        assert all(client.read_response().complete for client in waiting)


def wait_total(site: Stand, total: int) -> None:
    site.process.wait_until(lambda: sum(site.counts(CHAT)) >= total, f"{total} requests have arrived")


def test_equal_backends_share_without_redis_too(tmp_path_factory: pytest.TempPathFactory) -> None:
    with stand(tmp_path_factory.mktemp("local"), backends={"priority": 0}) as two:
        fill_evenly(two, 6)


def test_a_holder_of_another_digest_is_asked_last(mixed: Stand) -> None:
    mixed.tidy()
    a, _, c = mixed.fakes
    a.fault(CHAT, faults.Error500("first"))
    assert mixed.post(CHAT).status == 200
    assert mixed.counts(CHAT) == [1, 0, 1]
    a.fault(CHAT, faults.Error500("first"))
    c.fault(CHAT, faults.Error500("second"))
    assert mixed.post(CHAT).status == 200
    assert mixed.counts(CHAT) == [2, 1, 2]


# --- nobody to ask -------------------------------------------------------------------------------


@pytest.mark.parametrize("path", INFERENCE)
def test_a_model_whose_holders_are_all_down_is_unavailable_not_unknown(gone: Stand, path: str) -> None:
    answer = gone.post(path, question(path, "only-b"))
    assert answer.status == 503
    assert int(answer.header("retry-after") or 0) >= 1
    error = answer.json()["error"]
    message = error if path.startswith("/api/") else error["message"]
    assert "only-b" in message
    if path == "/v1/messages":
        assert (answer.json()["type"], error["type"]) == ("error", "overloaded_error")


@pytest.fixture(scope="module")
def gone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """A product whose second backend is dead."""
    with stand(tmp_path_factory.mktemp("gone")) as made:
        made.fakes[1].kill()
        made.wait_unseen(made.fakes[1])
        yield made


def test_all_backends_dead_a_moment_ago_is_a_502_or_503_in_the_dialect(gone: Stand) -> None:
    gone.fakes[0].kill()
    answer = gone.post("/v1/chat/completions")
    gone.fakes[0].restart()
    assert answer.status in (502, 503)
    assert answer.json()["error"]["type"] == "api_error"
    assert "127.0.0.1" not in answer.body.decode()


# --- cloud ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """The first backend keeps away from the cloud, the second reaches it."""
    with ExitStack() as stack:
        a = stack.enter_context(FakeOllama("a", ["tiny", "big", "only-a"], cloud_disabled=True))
        b = stack.enter_context(FakeOllama("b", ["tiny", "only-b"]))
        b.cloud_models = {"big": FakeModel("big")}
        made = stack.enter_context(served([a, b], tmp_path_factory.mktemp("clouds"), **NO_BREAKER))
        for fake in (a, b):
            fake.wait_for("/api/status", 2)
        made.process.wait_until(lambda: made.post(CHAT, question(CHAT, "big:cloud")).status == 200, "b is the cloud's")
        yield made


@pytest.mark.parametrize("name", ["big:cloud", "big:7b-cloud", "BIG:Cloud"])
def test_a_cloud_name_goes_only_where_the_cloud_is_allowed(clouds: Stand, name: str) -> None:
    clouds.tidy()
    clouds.fakes[1].cloud_models = {"big": FakeModel("big"), "big:7b": FakeModel("big:7b")}
    assert clouds.post(CHAT, question(CHAT, name)).status == 200
    assert clouds.counts(CHAT) == [0, 1]


def test_an_unknown_cloud_name_is_the_clouds_own_answer(clouds: Stand) -> None:
    clouds.tidy()
    answer = clouds.post(CHAT, question(CHAT, "nope:cloud"))
    assert (answer.status, answer.json()) == (404, {"error": "model 'nope:cloud' not found"})


@pytest.mark.parametrize("path", INFERENCE)
def test_a_cloud_name_where_the_cloud_is_disabled_is_ollamas_403(no_cloud: Stand, path: str) -> None:
    answer = no_cloud.post(path, question(path, "big:cloud"))
    text = '{"error":"ollama cloud is disabled: remote model is unavailable"}'
    assert (answer.status, answer.body.decode()) == (403, text)
    assert answer.content_type == "application/json; charset=utf-8"
    assert no_cloud.counts(path) == [0]


@pytest.fixture(scope="module")
def no_cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with ExitStack() as stack:
        a = stack.enter_context(FakeOllama("a", ["tiny", "only-a"], cloud_disabled=True))
        made = stack.enter_context(served([a], tmp_path_factory.mktemp("no-cloud")))
        path = "/v1/chat/completions"
        made.process.wait_until(lambda: made.post(path, question(path, "x:cloud")).status == 403, "its status is known")
        a.forget_requests()
        yield made


# --- a worker that dies --------------------------------------------------------------------------


def test_a_killed_worker_takes_only_its_own_streams_and_others_serve_on(pair: Stand) -> None:
    pair.tidy()
    go_on = threading.Event()
    for fake in pair.fakes:
        fake.fault(CHAT, Halting(AsPlanned(), go_on), times=None, when=is_streamed)
    with ExitStack() as stack:
        workers = pair.process.workers
        running = [stream_on(worker, pair, stack) for worker in workers]
        workers[0].kill()
        pair.process.wait_until(lambda: not is_alive(workers[0]), "it takes no connection any more")
        assert pair.post(CHAT, question(CHAT, stream=False)).complete
        go_on.set()
        assert [ended(client) for client in running] == ["cut", "complete"]
    pair.process.wait_every_worker()
    # What it was sending is given up at the backends too.
    for fake in pair.fakes:
        fake.wait_idle()


def stream_on(worker: psutil.Process, site: Stand, stack: ExitStack) -> RawClient:
    """A stream that has begun."""
    with site.process.only(worker):
        client = stack.enter_context(site.client())
        before = sum(site.counts(CHAT))
        client.send_request("POST", CHAT, json.dumps(question(CHAT)).encode())
        wait_total(site, before + 1)
    return client


def ended(client: RawClient) -> str:
    try:
        return client.read_response().ended
    except CutOff:
        return "cut"
