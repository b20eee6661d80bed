"""Store operations over a fleet: who gets them, what the client sees of them, and when the change is seen."""

from __future__ import annotations

import hashlib
import json
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ollama
import pytest

from conformance.fakes import faults
from conformance.fakes.answers import NDJSON, Answer
from conformance.fakes.http import RawClient, RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from conformance.fakes.wire import LAST_CHUNK, Exchange, chunk
from tests.fakes import procs
from tests.product import SELDOM_POLLED, Stand, environment, gateway, listed, mark, question, stand
from tests.wire.shows import until

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

GOLDEN = Path(__file__).parents[1] / "golden"
# What the promise says of a client that leaves is 0.2 s; the rest is for a busy machine.
LATE_S = 2.0
# Where no time is promised: only a failure takes as long.
GONE_S = 15.0
SUCCESS = {"status": "success"}
MANIFEST = {"status": "pulling manifest"}
DIGEST = "sha256:" + "ab" * 32
BLOB = b"the weights of a model" * 1000
BLOB_DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"


def layer(completed: int) -> dict[str, Any]:
    return {"status": "pulling abababababab", "digest": DIGEST, "total": 100, "completed": completed}


@dataclass(frozen=True)
class Says(faults.Fault):
    """Progress as a test wants it, line by line: an event among them is waited for.

    Args:
        then: how it goes on after the last line; None: a proper end.
    """

    lines: Sequence[dict[str, Any] | threading.Event]
    then: faults.Ending | None = None
    answer: Answer = field(default_factory=lambda: Answer(200, (("Content-Type", NDJSON),), chunked=True))

    async def play(self, exchange: Exchange) -> None:
        await exchange.send(exchange.head(self.answer))
        for line in self.lines:
            if isinstance(line, threading.Event):
                await exchange.wait(line)
            else:
                await exchange.send(exchange.frame(json.dumps(line, separators=(",", ":")).encode() + b"\n"))
        await (self.then.play(exchange, self.answer) if self.then else exchange.send(LAST_CHUNK))


class Refuses(faults.Status):
    """A sentence of Ollama's instead of what was asked."""

    def __init__(self, text: str, code: int = 500) -> None:
        super().__init__(code, json.dumps({"error": text}))


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Two workers; what is new goes to both backends."""
    with stand(tmp_path_factory.mktemp("everywhere"), WEB_CONCURRENCY="2", CARAVAN_PULL_TO="all") as made:
        yield made


@pytest.fixture(scope="module")
def preferred(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """As shipped: what is new goes to the preferred backend."""
    with stand(tmp_path_factory.mktemp("preferred")) as made:
        yield made


def tidied(made: Stand) -> Stand:
    """Its fakes hold what they held first, and Caravan knows."""
    for fake in made.fakes:
        for model in fake.store.listed():
            if model.shortest not in ("tiny:latest", mark(fake)):
                fake.remove_model(model.name)
        fake.add_model("tiny")
        fake.store.blobs.clear()
        fake.add_model(f"again-{fake.name}")
    made.tidy()
    again = {f"again-{fake.name}:latest" for fake in made.fakes}
    # Who lists this has been asked since; that `tiny` is listed says only that somebody holds it.
    made.process.wait_each(lambda: again <= listed(made.url), "all were polled again")
    for fake in made.fakes:
        fake.remove_model(f"again-{fake.name}")
    base = {"tiny:latest", *map(mark, made.fakes)}
    made.process.wait_each(lambda: listed(made.url) == base, "the first models alone are there")
    return made


def wait_seen_by_all(site: Stand, *names: str) -> None:
    """Wait until each worker lists these models.

    The end of a change is held for that, but not for ever; the promise is asked of a machine that has nothing else to
    do, below.
    """
    wanted = {f"{name}:latest" for name in names}
    site.process.wait_each(lambda: wanted <= listed(site.url), f"{names} are seen")


@pytest.fixture
def both(everywhere: Stand) -> Stand:
    return tidied(everywhere)


@pytest.fixture
def one(preferred: Stand) -> Stand:
    return tidied(preferred)


def send(site: Stand, path: str, asked: dict[str, Any], **options: Any) -> RawResponse:
    method = "DELETE" if path == "/api/delete" else "POST"
    return fetch(site.url + path, method, json=asked, **options)


def texts(answer: RawResponse) -> list[str]:
    return [line.get("status") or line["error"] for line in answer.lines()]


def holders(site: Stand, name: str) -> list[str]:
    wanted = f"{name}:latest"
    return [fake.name for fake in site.fakes if wanted in {model.shortest for model in fake.store.listed()}]


def log_lines(site: Stand, answer: RawResponse) -> list[dict[str, Any]]:
    """What the access log says of a request."""
    request_id = answer.header("X-Request-Id") or "?"
    site.process.wait_output(f'"request_id": "{request_id}"')
    lines = [json.loads(line) for line in site.process.output.splitlines() if request_id in line]
    return [line for line in lines if line["logger"] == "caravan.access"]


# --- the same refusals as Ollama -----------------------------------------------------------------

REFUSALS = (
    "copy_404",
    "copy_invalid_source_400",
    "delete_404",
    "delete_invalid_name_400",
    "pull_invalid_name_400",
    "pull_no_model_400",
    "push_no_model_400",
)


@pytest.mark.parametrize("name", REFUSALS)
def test_what_ollama_refuses_is_refused_byte_for_byte(one: Stand, name: str) -> None:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    answer = fetch(one.url + case["path"], case["method"], case["request_body"].encode())
    assert (answer.status, answer.body.decode()) == (case["status"], case["response_body"])
    assert answer.content_type == case["response_headers"]["Content-Type"]
    assert all(not fake.count(case["path"]) for fake in one.fakes)


@pytest.mark.parametrize("name", ["copy_200", "delete_200"])
def test_what_ollama_does_without_a_word_is_done_without_a_word(one: Stand, name: str) -> None:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    if name == "delete_200":
        send(one, "/api/copy", {"source": "tiny", "destination": "tiny-copy"})
        wait_seen_by_all(one, "tiny-copy")
    answer = fetch(one.url + case["path"], case["method"], case["request_body"].encode())
    assert (answer.status, answer.body, answer.content_type) == (200, b"", None)
    assert answer.header("Content-Length") == "0"


@pytest.mark.parametrize("path", ["/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete"])
def test_a_missing_body_is_told(one: Stand, path: str) -> None:
    answer = fetch(one.url + path, "DELETE" if path == "/api/delete" else "POST", b"")
    assert (answer.status, answer.json()) == (400, {"error": "missing request body"})


def test_a_name_that_nobody_holds_cannot_be_pushed_and_no_path_is_shown(one: Stand) -> None:
    answer = send(one, "/api/push", {"model": "nope"})
    assert (answer.status, answer.json()) == (404, {"error": "model 'nope' not found"})


@pytest.mark.parametrize(
    ("path", "method", "allowed"),
    [
        ("/api/pull", "GET", "POST"),
        ("/api/delete", "POST", "DELETE"),
        (f"/api/blobs/{DIGEST}", "GET", "HEAD, POST"),
        ("/api/user/keys/abc", "GET", "DELETE"),
        ("/api/pull", "HEAD", "POST"),
    ],
)
def test_other_methods_are_refused_with_those_that_are_there(one: Stand, path: str, method: str, allowed: str) -> None:
    answer = fetch(one.url + path, method)
    assert (answer.status, answer.header("Allow")) == (405, allowed)


# --- a change is seen ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unhurried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """Two workers that look rarely at what the refresher wrote, which looks by itself once in five minutes."""
    slow = {"CARAVAN_POLL_INTERVAL": "300", "CARAVAN_RELOAD_INTERVAL": "0.3"}
    with stand(tmp_path_factory.mktemp("unhurried"), WEB_CONCURRENCY="2", CARAVAN_PULL_TO="all", **slow) as made:
        yield made


def shown(site: Stand, name: str) -> int:
    return fetch(f"{site.url}/api/show", "POST", json={"model": name}).status


def seen_by_all(site: Stand, name: str) -> set[tuple[bool, int]]:
    """What the workers, asked one by one, tell of a model."""
    return set(site.process.each(lambda: (f"{name}:latest" in listed(site.url), shown(site, name))))


CHANGES: dict[str, Callable[[Stand], RawResponse]] = {
    "pull": lambda site: send(site, "/api/pull", {"model": "pull"}),
    "whole": lambda site: send(site, "/api/pull", {"model": "whole", "stream": False}),
    "copy": lambda site: send(site, "/api/copy", {"source": "tiny", "destination": "copy"}),
    "create": lambda site: send(site, "/api/create", {"model": "create", "from": "tiny", "system": "Be brief."}),
}


@pytest.mark.alone
@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_in_the_next_answer_of_every_worker(unhurried: Stand, name: str) -> None:
    assert seen_by_all(unhurried, name) == {(False, 404)}
    answer = CHANGES[name](unhurried)
    assert answer.status == 200
    assert seen_by_all(unhurried, name) == {(True, 200)}
    assert send(unhurried, "/api/delete", {"model": name}).status == 200
    assert seen_by_all(unhurried, name) == {(False, 404)}


@pytest.mark.alone
def test_a_model_that_is_made_anew_is_shown_anew(unhurried: Stand) -> None:
    for system in ("Be brief.", "Be kind.", "Be brief."):
        send(unhurried, "/api/create", {"model": "mind", "from": "tiny", "system": system})
        said = {fetch(f"{unhurried.url}/api/show", "POST", json={"model": "mind"}).json()["system"] for _ in range(8)}
        assert said == {system}


def test_while_the_refresher_stands_still_a_change_is_answered_all_the_same(tmp_path: Path) -> None:
    with (
        FakeOllama("a", ["tiny"]) as fake,
        procs.caravan(environment([fake]), tmp_path, "refresh") as refresher,
        gateway([fake], tmp_path) as process,
    ):
        refresher.signal(signal.SIGSTOP)
        answer = fetch(process.url + "/api/pull", "POST", json={"model": "late"})
        refresher.signal(signal.SIGCONT)
    assert answer.lines()[-1] == SUCCESS


# --- pull ----------------------------------------------------------------------------------------


def test_a_pull_goes_to_the_preferred_backend_and_its_lines_pass_as_they_are(one: Stand) -> None:
    answer = send(one, "/api/pull", {"model": "new"})
    direct = fetch(one.fakes[0].url + "/api/pull", "POST", json={"model": "new"})
    assert (answer.status, answer.content_type) == (200, NDJSON)
    assert answer.body == direct.body
    assert holders(one, "new") == ["a"]


def test_a_pull_that_fails_in_the_stream_is_passed_on_as_it_is(one: Stand) -> None:
    case = json.loads((GOLDEN / "pull_error_in_stream.json").read_text())
    one.fakes[0].fault("/api/pull", Says([json.loads(line) for line in case["response_body"].splitlines()]))
    answer = fetch(one.url + "/api/pull", "POST", case["request_body"].encode())
    assert (answer.status, answer.content_type) == (200, NDJSON)
    assert answer.body.decode() == case["response_body"]


def test_the_request_reaches_the_backend_as_it_is(one: Stand) -> None:
    body = b'{ "model":"gpt-oss:20b:cloud", "insecure":true }'
    assert fetch(one.url + "/api/pull", "POST", body).complete
    assert one.fakes[0].wait_for("/api/pull").body == body


def test_one_who_wants_no_stream_gets_one_word_and_the_backend_streams_all_the_same(one: Stand) -> None:
    answer = send(one, "/api/pull", {"model": "new", "stream": False})
    assert (answer.status, answer.content_type, answer.body) == (200, "application/json", b'{"status":"success"}')
    assert one.fakes[0].wait_for("/api/pull").json()["stream"] is True


def test_one_who_wants_no_stream_gets_the_error_as_a_status(one: Stand) -> None:
    one.fakes[0].fault("/api/pull", Says([MANIFEST, {"error": "no room"}]))
    answer = send(one, "/api/pull", {"model": "new", "stream": False})
    assert (answer.status, answer.content_type, answer.body) == (500, "application/json", b'{"error":"no room"}')


def test_a_backend_that_refuses_before_the_first_line_is_passed_on(one: Stand) -> None:
    one.fakes[0].fault("/api/pull", Refuses("not this one", 400))
    answer = send(one, "/api/pull", {"model": "new"})
    assert (answer.status, answer.json()) == (400, {"error": "not this one"})


ENDINGS = {"rst": faults.Rst(), "eof": faults.Eof(), "clean": None, "half": faults.HalfChunk()}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_backend_that_dies_in_mid_pull_is_no_clean_end(one: Stand, ending: str) -> None:
    one.fakes[0].fault("/api/pull", Says([MANIFEST, layer(10)], ENDINGS[ending]))
    answer = send(one, "/api/pull", {"model": "new"})
    assert answer.lines() == [MANIFEST, layer(10), {"error": "pull on a failed: the connection was lost"}]


def test_a_backend_that_falls_silent_is_told_with_the_setting_that_says_how_long(tmp_path: Path) -> None:
    with stand(tmp_path, CARAVAN_PULL_TO="all", CARAVAN_STORE_TIMEOUT="3") as hurried:
        for fake in hurried.fakes:
            fake.fault("/api/pull", Says([MANIFEST], faults.Stall()))
        answer = send(hurried, "/api/pull", {"model": "new"})
    assert answer.lines()[0] == MANIFEST
    assert answer.lines()[-1]["error"].count("it was silent for longer than CARAVAN_STORE_TIMEOUT") == 2


def test_a_pull_to_all_has_one_stream_that_tells_what_the_slowest_has(both: Stand) -> None:
    fast, slow = both.fakes
    gate = threading.Event()
    fast.fault("/api/pull", Says([MANIFEST, layer(50), layer(100), {"status": "writing manifest"}, SUCCESS]))
    slow.fault("/api/pull", Says([MANIFEST, layer(20), gate, layer(100), {"status": "writing manifest"}, SUCCESS]))
    with both.client() as client:
        client.send_request("POST", "/api/pull", b'{"model":"new"}')
        head = client.read_head()
        lines = client.iter_body(head)
        first = [json.loads(next(lines)) for _ in range(2)]
        gate.set()
        rest = [json.loads(line) for line in lines]
    assert first == [MANIFEST, layer(20)]
    assert rest == [layer(100), {"status": "writing manifest"}, SUCCESS]


def test_a_pull_to_all_reaches_all(both: Stand) -> None:
    answer = send(both, "/api/pull", {"model": "new"})
    assert texts(answer).count("success") == 1
    assert answer.lines()[-1] == SUCCESS
    assert holders(both, "new") == ["a", "b"]


@pytest.mark.alone
def test_where_one_fails_the_other_goes_on_and_the_last_line_names_both(both: Stand) -> None:
    both.fakes[1].fault("/api/pull", Says([MANIFEST, {"error": "no room"}]))
    answer = send(both, "/api/pull", {"model": "new"})
    assert answer.status == 200
    assert answer.lines()[-1] == {"error": "pull on b failed: no room; done on a"}
    assert holders(both, "new") == ["a"]
    assert "new:latest" in listed(both.url)


def test_where_one_dies_the_other_goes_on_and_no_address_is_shown(both: Stand) -> None:
    both.fakes[0].fault("/api/pull", Says([MANIFEST, layer(10)], faults.Rst()))
    answer = send(both, "/api/pull", {"model": "new", "stream": False})
    assert (answer.status, answer.json()) == (500, {"error": "pull on a failed: the connection was lost; done on b"})


def test_what_all_say_is_said_once(both: Stand) -> None:
    for fake in both.fakes:
        fake.fault("/api/pull", Says([MANIFEST, {"error": "no such model"}]), times=2)
    assert send(both, "/api/pull", {"model": "new"}).lines() == [MANIFEST, {"error": "no such model"}]
    whole = send(both, "/api/pull", {"model": "new", "stream": False})
    assert (whole.status, whole.json()) == (500, {"error": "no such model"})


@pytest.mark.alone
@pytest.mark.parametrize("lines", [[], [MANIFEST, layer(10)]], ids=["before the first line", "in mid pull"])
def test_a_client_that_leaves_ends_the_pull_everywhere(unhurried: Stand, lines: list[dict[str, Any]]) -> None:
    for fake in unhurried.fakes:
        fake.forget_requests()
        fake.fault("/api/pull", Says([*lines, threading.Event()]))
    with unhurried.client() as client:
        client.send_request("POST", "/api/pull", b'{"model":"new"}')
        pulls = [fake.wait_for("/api/pull") for fake in unhurried.fakes]
        if lines:
            assert next(client.iter_body(client.read_head()))
        client.close()
        assert all(pull.client_gone.wait(LATE_S) for pull in pulls)


def test_a_stop_in_mid_pull_ends_it_in_words(tmp_path: Path) -> None:
    with stand(tmp_path, names=("a",), CARAVAN_GRACE="4") as site, site.client() as client:
        site.fakes[0].fault("/api/pull", Says([MANIFEST, threading.Event()]))
        client.send_request("POST", "/api/pull", b'{"model":"new"}')
        assert read_line(client) == MANIFEST
        site.process.terminate()
        assert "being stopped" in read_line(client, head=False)["error"]
        assert site.fakes[0].wait_for("/api/pull").client_gone.wait(GONE_S)


# --- who gets what is new ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """What is new goes to two of three."""
    folder = tmp_path_factory.mktemp("chosen")
    with stand(folder, names=("a", "b", "c"), CARAVAN_PULL_TO="b,c") as made:
        yield made


def test_named_backends_get_what_is_new(chosen: Stand) -> None:
    site = tidied(chosen)
    assert send(site, "/api/pull", {"model": "new"}).lines()[-1] == SUCCESS
    assert holders(site, "new") == ["b", "c"]


def test_a_named_backend_that_is_down_is_named_in_the_end(chosen: Stand) -> None:
    site = tidied(chosen)
    site.fakes[2].kill()
    site.wait_unseen(site.fakes[2])
    try:
        answer = send(site, "/api/pull", {"model": "new"})
    finally:
        site.fakes[2].restart()
    assert answer.lines()[-1] == {"error": "pull on c failed: it is down; done on b"}


def test_a_backend_that_does_not_exist_is_told_at_the_request(tmp_path: Path) -> None:
    with stand(tmp_path, names=("a",), CARAVAN_PULL_TO="a,gpu9") as site:
        answer = send(site, "/api/pull", {"model": "new"})
    assert answer.status == 503
    assert "CARAVAN_PULL_TO names gpu9" in answer.json()["error"]
    assert not site.fakes[0].count("/api/pull")


# --- copy and delete -----------------------------------------------------------------------------


def test_a_copy_is_made_on_every_holder(one: Stand) -> None:
    assert send(one, "/api/copy", {"source": "TINY", "destination": "twin"}).status == 200
    assert holders(one, "twin") == ["a", "b"]


@pytest.mark.alone
def test_a_copy_that_fails_on_one_stays_done_on_the_other(one: Stand) -> None:
    one.fakes[1].fault("/api/copy", Refuses("disk full"))
    answer = send(one, "/api/copy", {"source": "tiny", "destination": "twin"})
    assert (answer.status, answer.json()) == (500, {"error": "copy on b failed: disk full; done on a"})
    assert "twin:latest" in listed(one.url)


def test_a_copy_that_fails_everywhere_alike_is_told_as_ollama_tells_it(one: Stand) -> None:
    for fake in one.fakes:
        fake.fault("/api/copy", Refuses("no inodes"))
    answer = send(one, "/api/copy", {"source": "tiny", "destination": "twin"})
    assert (answer.status, answer.json()) == (500, {"error": "no inodes"})


def test_a_backend_that_refuses_caravan_is_the_operators_business(one: Stand) -> None:
    one.fakes[1].fault("/api/copy", Refuses("who are you?", 401))
    answer = send(one, "/api/copy", {"source": "tiny", "destination": "twin"})
    said = "copy on b failed: it refuses Caravan with 401: check its token and URL; done on a"
    assert (answer.status, answer.json()) == (500, {"error": said})


@pytest.mark.alone
def test_a_delete_reaches_every_holder(one: Stand) -> None:
    assert send(one, "/api/delete", {"name": "tiny"}).status == 200
    assert holders(one, "tiny") == []
    assert "tiny:latest" not in listed(one.url)


def test_a_delete_of_what_one_holder_has_lost_already_is_done(one: Stand) -> None:
    one.fakes[1].fault("/api/delete", Refuses("model 'tiny' not found", 404))
    assert send(one, "/api/delete", {"model": "tiny"}).status == 200


def test_a_holder_that_is_down_keeps_the_model_and_is_named(one: Stand) -> None:
    one.fakes[1].kill()
    one.wait_unseen(one.fakes[1])
    try:
        answer = send(one, "/api/delete", {"model": "tiny"})
        one.process.wait_until(lambda: "tiny:latest" not in listed(one.url), "a is known to have lost it")
        again = send(one, "/api/delete", {"model": "tiny"})
    finally:
        one.fakes[1].restart()
    assert answer.status == 500
    assert answer.json() == {"error": "delete on b failed: it is down and still holds it; done on a"}
    assert again.status == 503


# --- push ----------------------------------------------------------------------------------------


def test_a_push_goes_from_the_preferred_holder_and_its_lines_pass_as_they_are(one: Stand) -> None:
    answer = send(one, "/api/push", {"model": "tiny"})
    assert answer.body == fetch(one.fakes[0].url + "/api/push", "POST", json={"model": "tiny"}).body
    assert one.counts("/api/push") == [2, 0]
    whole = send(one, "/api/push", {"model": "only-b", "stream": False})
    assert (whole.status, whole.json()) == (200, SUCCESS)
    assert one.counts("/api/push") == [2, 1]


def test_a_push_goes_from_another_holder_where_the_first_cannot_be_reached(tmp_path: Path) -> None:
    with stand(tmp_path, **SELDOM_POLLED) as site:
        site.fakes[0].kill()
        answer = send(site, "/api/push", {"model": "tiny"})
        assert answer.lines()[-1] == SUCCESS
        assert site.counts("/api/push") == [0, 1]
        (line,) = log_lines(site, answer)
    assert (line["attempts"], line["outcome"]) == (["a", "b"], "complete")


def test_a_push_that_has_begun_is_not_begun_again_elsewhere(one: Stand) -> None:
    one.fakes[0].fault("/api/push", faults.RstBeforeHeaders(), times=None)
    answer = send(one, "/api/push", {"model": "tiny"})
    assert (answer.status, answer.json()) == (500, {"error": "push on a failed: the connection was lost"})
    assert one.counts("/api/push")[1] == 0


# --- blobs and create ----------------------------------------------------------------------------


def put(site: Stand, body: bytes = BLOB, digest: str = BLOB_DIGEST) -> RawResponse:
    return fetch(f"{site.url}/api/blobs/{digest}", "POST", body)


def test_a_blob_goes_to_all_who_get_what_is_new(both: Stand) -> None:
    there = f"{both.url}/api/blobs/{BLOB_DIGEST}"
    assert fetch(there, "HEAD").status == 404
    first, second = put(both), put(both)
    assert (first.status, first.body, first.content_type) == (201, b"", None)
    assert (second.status, second.body) == (200, b"")
    assert fetch(there, "HEAD").status == 200
    assert [fake.store.blobs for fake in both.fakes] == [{BLOB_DIGEST: len(BLOB)}] * 2


def upload(site: Stand, is_chunked: bool) -> RawResponse:
    with site.client() as client:
        head = {"Transfer-Encoding": "chunked"} if is_chunked else {}
        body = chunk(BLOB) + LAST_CHUNK if is_chunked else BLOB
        client.send_request("POST", f"/api/blobs/{BLOB_DIGEST}", body, head)
        return client.read_response()


@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "length"])
def test_an_upload_uses_no_idle_connection(one: Stand, is_chunked: bool) -> None:
    """That may have gone stale, and what comes only once cannot be sent again."""
    a, _ = one.fakes
    # What it leaves is a connection that could be used.
    assert one.post("/api/chat", question("/api/chat", mark(a))).complete
    a.wait_idle()
    a.fault("/api/blobs/*", faults.RstBeforeHeaders(), times=None, when=lambda request: request.nth > 1)
    answer = upload(one, is_chunked)
    assert answer.status == 201
    assert a.store.blobs == {BLOB_DIGEST: len(BLOB)}


@pytest.mark.parametrize("is_chunked", [True, False], ids=["chunked", "length"])
def test_an_upload_whose_connection_is_lost_is_not_sent_again_without_its_bytes(one: Stand, is_chunked: bool) -> None:
    a, _ = one.fakes
    a.fault("/api/blobs/*", faults.RstBeforeHeaders())
    answer = upload(one, is_chunked)
    assert (answer.status, answer.json()) == (500, {"error": "upload on a failed: the connection was lost"})
    assert a.count("/api/blobs/*") == 1
    assert a.store.blobs == {}


def test_a_blob_that_one_lacks_is_not_there(both: Stand) -> None:
    put(both)
    both.fakes[1].store.blobs.clear()
    assert fetch(f"{both.url}/api/blobs/{BLOB_DIGEST}", "HEAD").status == 404
    assert put(both).status == 201


@pytest.mark.parametrize("method", ["HEAD", "POST"])
@pytest.mark.parametrize("digest", ["sha256:12", "md5:" + "a" * 64, "sha256%3A" + "g" * 64])
def test_a_digest_that_is_none_reaches_nobody(one: Stand, method: str, digest: str) -> None:
    answer = fetch(f"{one.url}/api/blobs/{digest}", method, b"x" if method == "POST" else None)
    assert answer.status == 400
    assert method == "HEAD" or answer.json() == {"error": "invalid digest format"}
    assert not any(fake.count("/api/blobs/*") for fake in one.fakes)


def test_a_chunked_blob_arrives_whole(one: Stand) -> None:
    with one.client() as client:
        client.send_request("POST", f"/api/blobs/{BLOB_DIGEST}", None, {"Transfer-Encoding": "chunked"})
        for at in range(0, len(BLOB), 7000):
            piece = BLOB[at : at + 7000]
            client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
        client.send(b"0\r\n\r\n")
        assert client.read_response().status == 201
        assert client.request("HEAD", f"/api/blobs/{BLOB_DIGEST}").status == 200


@pytest.mark.alone
def test_a_client_that_leaves_while_its_upload_is_verified_ends_it(unhurried: Stand) -> None:
    for fake in unhurried.fakes:
        fake.forget_requests()
        fake.fault("/api/blobs/*", faults.StallBeforeHeaders())
    with unhurried.client() as client:
        client.send_request("POST", f"/api/blobs/{BLOB_DIGEST}", BLOB)
        uploads = [fake.wait_for("/api/blobs/*") for fake in unhurried.fakes]
        client.close()
        assert all(upload.client_gone.wait(LATE_S) for upload in uploads)


def test_a_blob_that_is_another_one_is_told_as_ollama_tells_it(both: Stand) -> None:
    answer = put(both, BLOB[1:])
    assert answer.status == 400
    assert answer.json()["error"].startswith(f'digest mismatch, expected "{BLOB_DIGEST}"')


def test_a_blob_that_one_refuses_stays_with_the_other(both: Stand) -> None:
    both.fakes[0].fault("/api/blobs/*", Refuses("no room"))
    answer = put(both)
    assert (answer.status, answer.json()) == (500, {"error": "upload on a failed: no room; done on b"})


def test_a_model_is_made_where_its_files_are(both: Stand) -> None:
    put(both)
    both.fakes[0].store.blobs.clear()
    answer = send(both, "/api/create", {"model": "made", "files": {"m.gguf": BLOB_DIGEST}})
    assert answer.lines()[-1] == SUCCESS
    assert holders(both, "made") == ["b"]


def test_a_model_is_made_where_its_files_are_even_if_new_ones_go_elsewhere(one: Stand) -> None:
    one.fakes[1].store.blobs[BLOB_DIGEST] = len(BLOB)
    assert send(one, "/api/create", {"model": "made", "files": {"m.gguf": BLOB_DIGEST}}).lines()[-1] == SUCCESS
    assert holders(one, "made") == ["b"]


def test_a_model_of_files_that_nobody_has_is_refused(one: Stand) -> None:
    answer = send(one, "/api/create", {"model": "made", "files": {"m.gguf": BLOB_DIGEST}})
    assert answer.status == 400
    assert "upload them first" in answer.json()["error"]
    assert one.counts("/api/create") == [0, 0]


def test_a_model_is_made_where_its_base_is(one: Stand) -> None:
    assert send(one, "/api/create", {"model": "made", "from": "only-b"}).lines()[-1] == SUCCESS
    assert holders(one, "made") == ["b"]
    assert send(one, "/api/create", {"model": "other", "from": "tiny"}).lines()[-1] == SUCCESS
    assert holders(one, "other") == ["a"]


def test_a_model_of_nothing_is_refused_by_the_backend(one: Stand) -> None:
    answer = send(one, "/api/create", {"model": "made"})
    assert (answer.status, answer.json()) == (400, {"error": "neither 'from' or 'files' was specified"})


# --- who may -------------------------------------------------------------------------------------

MANAGED = [
    ("POST", "/api/pull"),
    ("POST", "/api/push"),
    ("POST", "/api/create"),
    ("POST", "/api/copy"),
    ("DELETE", "/api/delete"),
    ("POST", f"/api/blobs/{DIGEST}"),
    ("HEAD", f"/api/blobs/{DIGEST}"),
]
ASKED = b'{"model":"tiny","from":"tiny","source":"tiny","destination":"twin"}'


def assert_refused(site: Stand, method: str, path: str, headers: dict[str, str] | None = None) -> None:
    answer = fetch(site.url + path, method, None if method == "HEAD" else ASKED, headers)
    assert answer.status == 403
    assert not any(fake.count(path) for fake in site.fakes)


@pytest.mark.parametrize(("method", "path"), MANAGED)
@pytest.mark.parametrize("headers", [{"X-Forwarded-For": "10.0.0.9"}, {"Via": "1.1 nginx"}, {"Host": "10.1.2.3:8080"}])
def test_only_this_machine_itself_may_change_anything(
    one: Stand, method: str, path: str, headers: dict[str, str]
) -> None:
    assert_refused(one, method, path, headers)


def test_a_public_listener_changes_nothing(tmp_path: Path) -> None:
    with stand(tmp_path, HOST="0.0.0.0", CARAVAN_ANONYMOUS="1") as site:
        for method, path in MANAGED:
            assert_refused(site, method, path)


# --- what is written down ------------------------------------------------------------------------


def test_an_operation_has_a_line_in_the_log_and_no_secret_is_in_it(both: Stand) -> None:
    asked = {"model": "new", "username": "ada", "password": "hush-hush"}
    (line,) = log_lines(both, send(both, "/api/pull", asked))
    told = {key: line[key] for key in ("route", "model", "status", "outcome", "attempts")}
    assert told == {"route": "/api/pull", "model": "new", "status": 200, "outcome": "complete", "attempts": ["a", "b"]}
    assert "hush-hush" not in both.process.output


def test_the_line_of_an_operation_that_failed_in_part_says_so(both: Stand) -> None:
    both.fakes[0].fault("/api/copy", Refuses("no"))
    (line,) = log_lines(both, send(both, "/api/copy", {"source": "tiny", "destination": "x"}))
    assert (line["outcome"], line["status"]) == ("partly", 500)


# --- Ollama's own client -------------------------------------------------------------------------


@pytest.fixture
def native(both: Stand) -> Iterator[ollama.Client]:
    with ollama.Client(host=both.url) as client:
        yield client


def names(client: ollama.Client) -> set[str | None]:
    return {model.model for model in client.list().models}


def test_ollamas_client_pulls_copies_pushes_and_deletes(both: Stand, native: ollama.Client) -> None:
    assert [part.status for part in native.pull("new", stream=True)][-1] == "success"
    assert native.pull("new").status == "success"
    wait_seen_by_all(both, "new")
    native.copy("new", "twin")
    wait_seen_by_all(both, "new", "twin")
    assert {"new:latest", "twin:latest"} <= names(native)
    assert native.push("twin").status == "success"
    assert [part.status for part in native.push("twin", stream=True)][-1] == "success"
    native.delete("new")
    native.delete("twin")
    gone = {"new:latest", "twin:latest"}
    both.process.wait_each(lambda: not gone & listed(both.url), "the deletes are seen")
    assert not gone & names(native)


def test_ollamas_client_makes_models(both: Stand, native: ollama.Client, tmp_path: Path) -> None:
    assert native.create("made", from_="tiny", system="Be brief.").status == "success"
    wait_seen_by_all(both, "made")
    assert native.show("made").modelfile is not None
    weights = tmp_path / "m.gguf"
    weights.write_bytes(BLOB)
    digest = native.create_blob(weights)
    assert [part.status for part in native.create("mine", files={"m.gguf": digest}, stream=True)][-1] == "success"
    wait_seen_by_all(both, "made", "mine")
    assert {"made:latest", "mine:latest"} <= names(native)


def test_ollamas_client_hears_of_errors(both: Stand, native: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match='model "nope" not found') as caught:
        native.copy("nope", "x")
    assert caught.value.status_code == 404
    both.fakes[1].fault("/api/pull", Says([MANIFEST, {"error": "no room"}]))
    with pytest.raises(ollama.ResponseError, match="pull on b failed: no room; done on a"):
        list(native.pull("new", stream=True))


def test_one_client_that_leaves_does_not_end_the_pull_of_another(both: Stand) -> None:
    gate = threading.Event()
    for fake in both.fakes:
        fake.fault("/api/pull", Says([MANIFEST, gate, SUCCESS]), times=2)
    with both.client() as leaving, both.client() as staying:
        for client in (leaving, staying):
            client.send_request("POST", "/api/pull", b'{"model":"new"}')
        assert read_line(staying) == MANIFEST
        assert read_line(leaving) == MANIFEST
        leaving.close()
        until(lambda: all(map(one_was_left, both.fakes)), "its pull is over")
        gate.set()
        assert read_line(staying, head=False) == SUCCESS


def one_was_left(fake: FakeOllama) -> bool:
    return any(request.client_gone.is_set() for request in fake.requests_for("/api/pull"))


def read_line(client: RawClient, head: bool = True) -> Any:
    """The next line of a stream, which is one chunk of it."""
    if head:
        client.read_head()
    size = int(client.read_until(b"\r\n"), 16)
    return json.loads(client.read_exactly(size + 2))
