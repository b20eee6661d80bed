"""What requests cost, as Caravan notes it: what the backends count, in every dialect, whatever ends a request."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.faults import Eof, Fault, Stall, StallBeforeHeaders, Status, StreamThen
from conformance.fakes.http import RawClient, RawResponse, encode_json, fetch
from conformance.fakes.ollama import FakeOllama, RecordedRequest
from conformance.fakes.replies import PROMPT_TOKENS
from conformance.fakes.wire import LAST_CHUNK, Exchange
from proxy_app.store.registry import Registry
from proxy_app.store.usage import Tally, UsageKey, UsageStore
from tests.keys import bearer, new_key
from tests.product import NO_BREAKER, question
from tests.wire.shows import gateway, until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

CHAT, OPENAI = "/api/chat", "/v1/chat/completions"
SPEAKING = (CHAT, "/api/generate", OPENAI, "/v1/completions", "/v1/responses", "/v1/messages")
EMBEDDING = ("/api/embed", "/v1/embeddings")
# How much a fake says in answers that nobody hears to their end.
SPOKEN = 5
# Rows are written every few seconds. Seconds.
WRITTEN_S = 30.0
SEEDS = itertools.count()
SECRET = "zebra-in-the-prompt"


def model_of(path: str, kind: str) -> str:
    """A model for each route and way to end, so that their sums stand apart."""
    return f"{kind}{path.replace('/', '-')}"


MODELS = ["tiny", *(model_of(path, kind) for path in SPEAKING + EMBEDDING for kind in ("done", "gone", "late"))]


@dataclass
class Site:
    url: str
    folder: Path
    fakes: tuple[FakeOllama, ...]
    keys: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, asked: Any, key: str = "user") -> RawResponse:
        return fetch(self.url + path, "POST", json=asked, headers=bearer(self.keys[key]))

    def rows(self) -> list[tuple[UsageKey, Tally]]:
        registry = Registry(self.folder / "data")
        try:
            return UsageStore(registry).since(0)
        finally:
            registry.close()

    def sums(self, part: str = "model", key: str | None = None) -> dict[str, Tally]:
        found: dict[str, Tally] = defaultdict(Tally)
        for row, tally in self.rows():
            if key is None or row.key_id == self.keys[key].split("_")[1]:
                found[getattr(row, part)] += tally
        return found

    def wait_requests(self, key: str, count: int) -> None:
        def written() -> int:
            return sum(tally.requests for tally in self.sums(key=key).values())

        until(lambda: written() >= count, f"{count} requests of {key} are written", WRITTEN_S)
        assert written() == count


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("metering")
    keys = {label: new_key(folder, label) for label in ("user", "mixed", "names", "single", "failing", "secret")}
    with (
        FakeOllama("one", MODELS) as one,
        FakeOllama("two", MODELS) as two,
        gateway([one, two], folder, WEB_CONCURRENCY="2", **NO_BREAKER) as process,
    ):
        yield Site(process.url, folder, (one, two), keys)


@contextmanager
def faulty(site: Site, path: str, fault: Fault, **when: Any) -> Iterator[None]:
    for fake in site.fakes:
        fake.fault(path, fault, times=None, **when)
    try:
        yield
    finally:
        for fake in site.fakes:
            fake.clear_faults()


# -- the sums -------------------------------------------------------------------------------------------


@dataclass
class Sums:
    """What was asked, as the clients and the fakes know it."""

    requests: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    least: int = 0
    gpu_ms: float = 0.0
    load_ms: float = 0.0


def plan_of(count: int) -> list[tuple[str, str, bool, int]]:
    """Path, way to end, stream, tokens."""
    dice = random.Random(4)
    plan = []
    for number in range(count):
        kind = "gone" if number % 3 == 2 else "done"
        path = SPEAKING[dice.randrange(len(SPEAKING))]
        stream = bool(dice.randrange(2))
        if kind == "gone" and not stream:
            kind = "late"
        if kind == "done" and not dice.randrange(6):
            path = EMBEDDING[dice.randrange(len(EMBEDDING))]
        plan.append((path, kind, stream, dice.randrange(1, 30)))
    return plan


def ask_all(site: Site, plan: list[tuple[str, str, bool, int]]) -> dict[str, Sums]:
    """Ask all of it from several clients; the sums by model."""
    sums: dict[str, Sums] = defaultdict(Sums)
    with ThreadPoolExecutor(6) as pool:
        for (path, kind, _, tokens), got in zip(plan, pool.map(lambda one: ask_one(site, *one), plan), strict=True):
            found = sums[model_of(path, kind)]
            found.requests += 1
            if kind == "done":
                is_embedding = path in EMBEDDING
                found.tokens_in += 2 if is_embedding else PROMPT_TOKENS
                found.tokens_out += 0 if is_embedding else tokens
                # Embeddings: 6139051 - 2486090 ns.
                found.gpu_ms += 3.652961 if is_embedding else 12.5 + 10 * tokens
                found.load_ms += 2.48609 if is_embedding else 523.753703
            else:
                found.least += got
    return sums


def ask_one(site: Site, path: str, kind: str, stream: bool, tokens: int) -> int:
    """One request; the tokens that the client got of it."""
    if path in EMBEDDING:
        assert site.ask(path, {"model": model_of(path, kind), "input": "two words"}, "mixed").status == 200
        return 0
    # Each has a seed of its own: by that it is known where it arrives.
    asked = question(path, model_of(path, kind), stream, options={"fake_tokens": tokens, "seed": next(SEEDS)})
    if kind == "done":
        answer = site.ask(path, asked, "mixed")
        assert answer.status == 200
        assert answer.complete
        return tokens
    with RawClient(site.url) as client:
        body = encode_json(asked)
        headers = {"Content-Type": "application/json", **bearer(site.keys["mixed"])}
        client.send_request("POST", path, body, headers)
        if kind == "late":
            wait_asked(site, path, asked["options"]["seed"])
            return 0
        head = client.read_head()
        got = b""
        for piece in client.iter_body(head):
            got += piece
            if spoken(path, got) >= min(tokens, SPOKEN) - tokens % 3:
                break
        return spoken(path, got)


def wait_asked(site: Site, path: str, seed: int) -> None:
    """Wait until a backend works on this very request."""
    mark = b'"seed":%d}' % seed
    until(lambda: any(mark in request.body for fake in site.fakes for request in fake.requests_for(path)), "asked")


TOKEN = {
    CHAT: b'"message":{"role":"assistant","content":',
    "/api/generate": b'"response":',
    OPENAI: b'"content":',
    "/v1/completions": b'"text":',
    "/v1/responses": b'"type":"response.output_text.delta"',
    "/v1/messages": b'"text_delta"',
}


def spoken(path: str, body: bytes) -> int:
    return body.count(TOKEN[path])


def is_of(kind: str) -> Any:
    return lambda request: f'"{kind}-'.encode() in request.body


@dataclass(frozen=True)
class Burst(Fault):
    """Many tokens in one piece, then silence."""

    tokens: int

    async def play(self, exchange: Exchange) -> None:
        plan = exchange.plan()
        await exchange.send(b"".join([piece async for piece in exchange.records(plan, tokens=self.tokens)]))
        await exchange.wait(None)


def leave_after(site: Site, path: str, tokens: int) -> None:
    """A stream that is left when so many of its tokens have come."""
    asked = question(path, model_of(path, "late"), True, options={"fake_tokens": tokens + 20})
    with faulty(site, path, Burst(tokens)), RawClient(site.url) as client:
        headers = {"Content-Type": "application/json", **bearer(site.keys["single"])}
        client.send_request("POST", path, encode_json(asked), headers)
        got = b""
        for piece in client.iter_body(client.read_head()):
            got += piece
            if spoken(path, got) >= tokens:
                return


def fail(site: Site) -> None:
    """Four requests of which one ends well."""
    for fault in (StreamThen(2), StreamThen(2, Eof()), Status(400, '{"error":"no"}')):
        with faulty(site, CHAT, fault):
            site.ask(CHAT, question(CHAT), "failing")
    assert site.ask(CHAT, question(CHAT), "failing").status == 200


def make_names_up(site: Site) -> None:
    for name in ("made-up-name", "made-up/name:x", "made-up:cloud", "made-up-cloud"):
        assert site.ask(CHAT, question(CHAT, name), "names").status >= 400
    assert site.ask(CHAT, question(CHAT, "TINY"), "names").status == 200


def tell_a_secret(site: Site) -> None:
    asked = question(CHAT, messages=[{"role": "user", "content": SECRET}], stream=False)
    assert site.ask(CHAT, asked, "secret").status == 200


BURST = (CHAT, OPENAI, "/v1/messages")
Noted = tuple[dict[str, Sums], dict[str, Tally]]


@pytest.fixture(scope="module")
def mixed(site: Site) -> Noted:
    """1,000 requests, a third of which is left by its client, and some others: what was asked, and what was noted."""
    plan = plan_of(1000)
    for path in SPEAKING:
        for fake in site.fakes:
            fake.fault(path, StreamThen(SPOKEN, Stall()), times=None, when=is_of("gone"))
            fake.fault(path, StallBeforeHeaders(), times=None, when=is_of("late"))
    try:
        asked = ask_all(site, plan)
    finally:
        for fake in site.fakes:
            fake.clear_faults()
    for path in BURST:
        leave_after(site, path, 40)
    fail(site)
    make_names_up(site)
    tell_a_secret(site)
    for key, count in (("mixed", len(plan)), ("single", len(BURST)), ("failing", 4), ("names", 5), ("secret", 1)):
        site.wait_requests(key, count)
    return asked, site.sums(key="mixed")


@pytest.mark.parametrize("path", SPEAKING + EMBEDDING)
def test_tokens_of_completed_requests_are_those_that_the_backends_counted(mixed: Noted, path: str) -> None:
    asked, noted = mixed[0][model_of(path, "done")], mixed[1][model_of(path, "done")]
    assert noted.requests == asked.requests > 0
    assert (noted.tokens_in, noted.tokens_out) == (asked.tokens_in, asked.tokens_out)
    assert noted.errors == 0


@pytest.mark.parametrize("path", [CHAT, "/api/generate", "/api/embed"])
def test_gpu_time_is_exact_in_ollamas_own_dialect(mixed: Noted, path: str) -> None:
    asked, noted = mixed[0][model_of(path, "done")], mixed[1][model_of(path, "done")]
    assert noted.estimated == 0
    # Whole milliseconds are kept for each request.
    assert abs(noted.gpu_ms - asked.gpu_ms) < asked.requests
    assert abs(noted.load_ms - asked.load_ms) < asked.requests


@pytest.mark.parametrize("path", [path for path in SPEAKING + EMBEDDING if path.startswith("/v1/")])
def test_gpu_time_is_marked_as_estimated_elsewhere(mixed: Noted, path: str) -> None:
    noted = mixed[1][model_of(path, "done")]
    assert noted.estimated == noted.requests
    assert noted.load_ms == 0


@pytest.mark.parametrize("path", SPEAKING)
def test_an_answer_that_was_left_counts_what_came_at_least_and_what_was_said_at_most(mixed: Noted, path: str) -> None:
    asked, noted = mixed[0][model_of(path, "gone")], mixed[1][model_of(path, "gone")]
    assert noted.requests == asked.requests > 0
    assert noted.errors == noted.requests
    assert noted.estimated == noted.requests
    assert asked.least <= noted.tokens_out <= SPOKEN * asked.requests
    assert noted.tokens_in <= PROMPT_TOKENS * asked.requests


def test_what_nobody_got_a_token_of_has_none(mixed: Noted) -> None:
    late = {model: tally for model, tally in mixed[1].items() if model.startswith("late")}
    assert sum(tally.requests for tally in late.values()) == sum(
        sums.requests for model, sums in mixed[0].items() if model.startswith("late")
    )
    assert sum(tally.tokens_out for tally in late.values()) == 0


@pytest.mark.usefixtures("mixed")
@pytest.mark.parametrize("path", BURST)
def test_tokens_that_come_in_one_piece_count_each(site: Site, path: str) -> None:
    assert 40 <= site.sums(key="single")[model_of(path, "late")].tokens_out <= 60


# -- OpenAI's streams -----------------------------------------------------------------------------------

ID = re.compile(rb'"id":"(?:chat)?cmpl-\d+"|"created":\d+')


def plain(body: bytes) -> bytes:
    """Without what differs from answer to answer."""
    return ID.sub(b"", body)


def last_body(site: Site, path: str) -> dict[str, Any]:
    found: list[RecordedRequest] = [request for fake in site.fakes for request in fake.requests_for(path)]
    newest: dict[str, Any] = max(found, key=lambda request: request.at).json()
    return newest


@pytest.mark.parametrize(
    "more", [{}, {"stream_options": {}}, {"stream_options": None}, {"stream_options": {"include_usage": False}}]
)
def test_a_client_that_did_not_ask_for_the_usage_does_not_get_it(site: Site, more: dict[str, Any]) -> None:
    asked = question(OPENAI, stream=True, **more)
    direct = fetch(site.fakes[0].url + OPENAI, "POST", json=asked)
    answer = site.ask(OPENAI, asked)
    assert last_body(site, OPENAI)["stream_options"]["include_usage"] is True
    assert plain(answer.body).replace(b"two", b"one") == plain(direct.body)
    assert b'"usage"' not in answer.body


@pytest.mark.parametrize("more", [{}, {"stream_options": {"include_usage": False}}])
def test_a_completion_that_did_not_ask_for_the_usage_does_not_get_it_either(site: Site, more: dict[str, Any]) -> None:
    asked = question("/v1/completions", stream=True, **more)
    direct = fetch(site.fakes[0].url + "/v1/completions", "POST", json=asked)
    assert plain(site.ask("/v1/completions", asked).body).replace(b"two", b"one") == plain(direct.body)


def test_a_completion_that_asked_for_the_usage_gets_it(site: Site) -> None:
    asked = question("/v1/completions", stream=True, stream_options={"include_usage": True})
    direct = fetch(site.fakes[0].url + "/v1/completions", "POST", json=asked)
    assert direct.body.count(b'"usage"') > 2
    assert plain(site.ask("/v1/completions", asked).body).replace(b"two", b"one") == plain(direct.body)


@pytest.mark.parametrize("key", ["stream_options", "Stream_Options", "STREAM_OPTIONS"])
def test_a_client_that_asked_for_the_usage_gets_it(site: Site, key: str) -> None:
    text = json.dumps(question(OPENAI, stream=True)).encode()[:-1] + b' , "%s": {"include_usage": true}}' % key.encode()
    usage = b'{"prompt_tokens":7,"completion_tokens":4,"total_tokens":11}'
    with faulty(site, OPENAI, Always(usage)):
        answer = fetch(
            site.url + OPENAI, "POST", text, {"Content-Type": "application/json", **bearer(site.keys["user"])}
        )
    assert usage in answer.body
    assert answer.body.endswith(b"data: [DONE]\n\n")


@dataclass(frozen=True)
class Always(Fault):
    """A backend that says its usage, by whatever key it was asked."""

    usage: bytes

    async def play(self, exchange: Exchange) -> None:
        head = exchange.plan()
        await exchange.send(exchange.head(head))
        for event in (
            b'{"choices":[{"delta":{"content":"Hi"}}]}',
            b'{"choices":[],"usage":' + self.usage + b"}",
            b"[DONE]",
        ):
            await exchange.send(exchange.frame(b"data: " + event + b"\n\n"))
        await exchange.send(LAST_CHUNK)


def test_a_body_that_asks_already_is_forwarded_as_it_is(site: Site) -> None:
    text = b'{ "stream":true ,"stream_options":{"include_usage":true, "x":1}, "model":"tiny",'
    text += b'"messages":[{"role":"user","content":"hi"}]}'
    for fake in site.fakes:
        fake.forget_requests()
    fetch(site.url + OPENAI, "POST", text, {"Content-Type": "application/json", **bearer(site.keys["user"])})
    assert [request.body for fake in site.fakes for request in fake.requests_for(OPENAI)] == [text]


def test_other_options_of_a_stream_are_kept(site: Site) -> None:
    asked = question(
        OPENAI, stream=True, stream_options={"include_obfuscation": False, "x": [1.50]}, seed=12345678901234567890
    )
    site.ask(OPENAI, asked)
    sent = last_body(site, OPENAI)
    assert sent.pop("stream_options") == {"include_obfuscation": False, "x": [1.5], "include_usage": True}
    asked.pop("stream_options")
    assert sent == asked


@pytest.mark.parametrize("path", ["/api/chat", "/v1/messages", "/v1/responses", OPENAI])
def test_what_needs_no_change_is_forwarded_as_it_is(site: Site, path: str) -> None:
    text = b'{ "model" : "tiny",\n' + json.dumps(question(path, stream=False)).encode()[1:].replace(
        b'"model": "tiny", ', b""
    )
    for fake in site.fakes:
        fake.forget_requests()
    answer = fetch(site.url + path, "POST", text, {"Content-Type": "application/json", **bearer(site.keys["user"])})
    assert answer.status == 200
    assert [request.body for fake in site.fakes for request in fake.requests_for(path)] == [text]


@dataclass(frozen=True)
class CutAt(Fault):
    """The answer as planned, cut into chunks at these texts; between two of them Caravan has read what came."""

    marks: tuple[bytes, ...]

    async def play(self, exchange: Exchange) -> None:
        plan = exchange.plan()
        body = plan.flat()
        await exchange.send(exchange.head(plan))
        places = sorted(body.index(mark) + len(mark) // 2 for mark in self.marks)
        for start, end in zip([0, *places], [*places, len(body)], strict=True):
            await exchange.send(exchange.frame(body[start:end]))
            await exchange.wait(0.05)
        await exchange.send(LAST_CHUNK)


@pytest.mark.parametrize(
    "marks", [(b'"usage":{',), (b'"choices":[]',), (b'"choices":[]', b"total_tokens"), (b"[DONE]",)]
)
def test_the_usage_is_taken_out_wherever_the_network_cuts_it(site: Site, marks: tuple[bytes, ...]) -> None:
    asked = question(OPENAI, stream=True)
    direct = fetch(site.fakes[0].url + OPENAI, "POST", json=asked)
    with faulty(site, OPENAI, CutAt(marks)):
        answer = site.ask(OPENAI, asked)
    assert answer.complete
    assert plain(answer.body).replace(b"two", b"one") == plain(direct.body)


# -- the rows -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("mixed")
def test_names_that_clients_made_up_are_not_stored(site: Site) -> None:
    assert set(site.sums(key="names")) == {"", "tiny"}
    assert site.sums(key="names")[""].errors == 4


@pytest.mark.usefixtures("mixed")
def test_requests_that_failed_are_counted_as_errors(site: Site) -> None:
    assert site.sums(key="failing")["tiny"].requests == 4
    assert site.sums(key="failing")["tiny"].errors == 3
    assert set(site.sums("backend", key="failing")) <= {"one", "two"}


@pytest.mark.usefixtures("mixed")
def test_no_word_of_a_prompt_and_no_key_is_in_the_data(site: Site) -> None:
    for path in (site.folder / "data").rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data, path
            assert not [key for key in site.keys.values() if key.encode() in data], path


def test_what_was_not_written_yet_is_written_at_the_end(tmp_path: Path) -> None:
    key = new_key(tmp_path, "last")
    with FakeOllama("one") as one, gateway([one], tmp_path) as process:
        site = Site(process.url, tmp_path, (one,), {"last": key})
        assert site.ask(CHAT, question(CHAT, stream=False), "last").status == 200
        process.stop()
    assert site.sums(key="last")["tiny"].tokens_out == 4
