"""The fake Ollama server against recordings of the real one, and the faults it promises.

A fake that drifts from Ollama makes every other test worth less, so each recorded case that a
simulated server can know is replayed here: status, content type, framing and body shape.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes import faults
from conformance.fakes.faults import Fault, StreamThen
from conformance.fakes.http import CutOff, NotHttp, RawClient, RawResponse, fetch
from conformance.fakes.names import BadReference, parse_name, parse_reference
from conformance.fakes.ollama import FakeModel, FakeOllama
from conformance.fakes.raw import answering, dead_address, raw_server, tarpit
from tests.conftest import FakeFactory

GOLDEN = Path(__file__).parents[1] / "golden"
DIGEST = "95d95ae552f0a94a39e3bdc7f370353e4615ee4fd8c77de68e4a6e8f7a8dd5f1"
# Values that differ on every call, replaced before bodies are compared.
VOLATILE = {"created", "created_at", "completed_at", "modified_at", "expires_at", "id"}
VOLATILE |= {"request_id", "item_id", "size", "size_vram", "total_duration", "load_duration"}
VOLATILE |= {"prompt_eval_duration", "eval_duration"}
# Cases about a state of the real server that the fake has no model of.
NOT_REPLAYED = {
    "push_no_model_400": "no push",
    "push_unknown_500": "no push",
    "generate_busy_503": "needs a full queue; the fault Refuse503Busy is compared below",
    "show_not_json_400": "the text is Go's parser's own; compared by status below",
}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


def golden_cases() -> list[dict[str, Any]]:
    cases = [json.loads(path.read_text()) for path in sorted(GOLDEN.glob("*.json"))]
    return [case for case in cases if isinstance(case, dict)]


def replayed() -> list[dict[str, Any]]:
    """Every case with a body as one request each; lists of requests are spread out."""
    found = []
    for case in golden_cases():
        if case["case"] in NOT_REPLAYED:
            continue
        for one in case.get("requests", [case]):
            found.append(case | one)
    return found


@pytest.fixture(scope="module")
def recorded_server() -> Iterator[FakeOllama]:
    """A fake set up as the server of the recordings was."""
    tiny2 = FakeModel(
        "NS/Tiny2:V1",
        system="be brief",
        parameters=(("stop", "a"), ("stop", "b"), ("temperature", 0.5)),
    )
    tiny = FakeModel("tiny", digest=DIGEST)
    with FakeOllama("fake llama", [tiny, tiny2], version="0.0.0", cloud_disabled=True) as fake:
        fake.pullable = set()
        yield fake


def send(fake: FakeOllama, case: dict[str, Any]) -> RawResponse:
    with RawClient(fake.url) as client:
        body = case["request_body"]
        return client.request(
            case["method"],
            case["path"],
            body=None if body is None else body.encode(),
            headers=case["request_headers"],
        )


def records(body: str) -> list[Any]:
    """Split a body into its JSON records, keeping what is not JSON as text."""
    found: list[Any] = []
    for line in body.splitlines():
        text = line.removeprefix("data: ")
        try:
            found.append(steady(json.loads(text)))
        except json.JSONDecodeError:
            found.append(line)
    return found


def steady(value: Any) -> Any:
    """Replace what varies by its type, keeping key order (Ollama's order is fixed)."""
    if isinstance(value, dict):
        return [(key, type(item).__name__ if key in VOLATILE else steady(item)) for key, item in value.items()]
    if isinstance(value, list):
        return [steady(item) for item in value]
    return value


def prepare(fake: FakeOllama, name: str) -> None:
    """Bring the store into the state that a case was recorded in."""
    for model, _ in fake.store.resident():
        fake.unload_model(model.name)
    if name == "ps_200":
        fake.load_model("tiny")
    if name == "delete_200":
        fake.add_model("tiny-copy")
    if name == "tags_200":
        fake.remove_model("NS/Tiny2:V1")
        fake.remove_model("tiny-copy")


@pytest.mark.parametrize("case", replayed(), ids=lambda case: case["case"])
def test_recorded_case(recorded_server: FakeOllama, case: dict[str, Any]) -> None:
    prepare(recorded_server, case["case"])
    if case["case"].startswith("show_"):
        recorded_server.add_model(
            FakeModel(
                "NS/Tiny2:V1",
                system="be brief",
                parameters=(("stop", "a"), ("stop", "b"), ("temperature", 0.5)),
            )
        )
    answer = send(recorded_server, case)
    assert answer.status == case["status"]
    assert answer.complete
    wanted_type = case.get("response_content_type") or case.get("response_headers", {}).get("Content-Type")
    assert answer.content_type == wanted_type
    if case.get("response_headers_complete"):
        compare_headers(answer, case["response_headers"])
    if case.get("response_body") is not None:
        compare_bodies(case["case"], answer.body.decode(), case["response_body"])


def compare_headers(answer: RawResponse, wanted: dict[str, str]) -> None:
    """Same headers in the same order; dates and lengths of bodies that vary may differ."""
    assert [name for name, _ in answer.headers] == list(wanted)
    steady_names = set(wanted) - {"Date", "Content-Length"}
    for name in steady_names:
        assert answer.header(name) == wanted[name]


def compare_bodies(name: str, got: str, wanted: str) -> None:
    got_records, wanted_records = records(got), records(wanted)
    if name == "show_200":
        # Templates, paths and tensors are the model's own: only the keys and their order count.
        got_keys = [key for key, _ in got_records[0]]
        assert got_keys == [key for key, _ in wanted_records[0]]
        return
    assert got_records == wanted_records
    assert got.endswith("\n") == wanted.endswith("\n")


def test_every_case_is_replayed_or_excused() -> None:
    names = {case["case"] for case in golden_cases()}
    assert set(NOT_REPLAYED) <= names
    assert len(names) == 128


@pytest.mark.parametrize(
    "vector", json.loads((GOLDEN / "names.json").read_text()), ids=lambda v: v["input"][:40] or "-"
)
def test_name_vector(vector: dict[str, Any]) -> None:
    if "error" in vector:
        with pytest.raises(BadReference, match=re.escape(vector["error"])):
            parse_reference(vector["input"])
        return
    source, base = parse_reference(vector["input"])
    name = parse_name(base)
    assert (source, base, name.valid) == (vector["source"], vector["base"], vector["valid"])
    if name.valid:
        assert (name.full, name.shortest) == (vector["full"], vector["shortest"])


# --- details that no recording holds -----------------------------------------------------------


def test_show_overlays_and_copilot(recorded_server: FakeOllama) -> None:
    recorded_server.add_model(FakeModel("over", parameters=(("stop", "a"),)))
    url = recorded_server.url + "/api/show"
    ask = {"model": "over", "system": "OVR", "options": {"num_ctx": 99}}
    shown = fetch(url, "POST", json=ask).json()
    assert shown["system"] == "OVR"
    assert "PARAMETER num_ctx 99" in shown["modelfile"]
    assert "num_ctx" not in shown["parameters"]
    headers = {"User-Agent": "GitHubCopilotChat/1"}
    shown = fetch(url, "POST", json={"model": "Over"}, headers=headers).json()
    assert shown["model_info"]["general.basename"] == "Over"


def test_verbose_show_is_chunked_and_long(fake: FakeOllama) -> None:
    fake.add_model(FakeModel("big", verbose_tokens=10_000))
    answer = fetch(fake.url + "/api/show", "POST", json={"model": "big", "verbose": True})
    assert answer.header("transfer-encoding") == "chunked"
    assert len(answer.json()["model_info"]["tokenizer.ggml.tokens"]) == 10_000


def test_wrong_text_for_json_is_400(fake: FakeOllama) -> None:
    answer = fetch(fake.url + "/api/show", "POST", body=b"{not json")
    assert answer.status == 400
    assert answer.json()["error"].startswith("invalid character 'n'")


def test_cloud_models(fake: FakeOllama) -> None:
    fake.cloud_models = {"big": FakeModel("big", context_length=8192)}
    url = fake.url + "/api/show"
    assert fetch(url, "POST", json={"model": "big:cloud"}).status == 200
    assert fetch(url, "POST", json={"model": "big"}).status == 404
    fake.cloud_disabled = True
    assert fetch(url, "POST", json={"model": "big:cloud"}).status == 403


def test_store_changes(fake: FakeOllama) -> None:
    def names() -> set[str]:
        return {model["name"] for model in fetch(fake.url + "/api/tags").json()["models"]}

    pulled = fetch(fake.url + "/api/pull", "POST", json={"model": "new:1b"})
    assert pulled.lines()[-1] == {"status": "success"}
    copied = {"source": "tiny", "destination": "ns/copy"}
    assert fetch(fake.url + "/api/copy", "POST", json=copied).status == 200
    assert names() == {"tiny:latest", "new:1b", "ns/copy:latest"}
    assert fetch(fake.url + "/api/delete", "DELETE", json={"name": "TINY"}).status == 200
    assert names() == {"new:1b", "ns/copy:latest"}


def test_digest_of_a_copy_is_that_of_its_source(fake: FakeOllama) -> None:
    fetch(fake.url + "/api/copy", "POST", json={"source": "tiny", "destination": "copy"})
    models = fetch(fake.url + "/api/tags").json()["models"]
    assert len(models) == 2
    assert len({model["digest"] for model in models}) == 1
    fake.set_digest("copy", "f" * 64)
    models = fetch(fake.url + "/api/tags").json()["models"]
    assert {model["digest"] for model in models} > {"f" * 64}


def test_inference_loads_and_keep_alive_zero_unloads(fake: FakeOllama) -> None:
    def loaded() -> list[str]:
        return [model["name"] for model in fetch(fake.url + "/api/ps").json()["models"]]

    fetch(fake.url + "/api/chat", "POST", json=CHAT)
    assert loaded() == ["tiny:latest"]
    fetch(fake.url + "/api/generate", "POST", json={"model": "tiny", "keep_alive": 0})
    assert loaded() == []


@pytest.mark.parametrize("field", [b'"response_format"\r\n\r\njson', b'"language"\r\n\r\nen'])
def test_transcription(fake: FakeOllama, field: bytes) -> None:
    parts = [
        b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\nRIFF\x00\xff',
        b'Content-Disposition: form-data; name="model"\r\n\r\ntiny',
        b"Content-Disposition: form-data; name=" + field,
    ]
    body = b"".join(b"--XX\r\n" + part + b"\r\n" for part in parts) + b"--XX--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=XX"}
    answer = fetch(fake.url + "/v1/audio/transcriptions", "POST", body, headers)
    assert answer.json() == {"text": "Hello from fake."}


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("Host", "example.com", 403),
        ("Host", "10.1.2.3:8080", 200),
        ("Host", "foo.internal", 200),
        ("Origin", "https://example.com", 403),
        ("Origin", "http://localhost:3000", 200),
    ],
)
def test_host_and_origin_rules(fake: FakeOllama, header: str, value: str, status: int) -> None:
    answer = fetch(fake.url + "/api/version", headers={header: value})
    assert answer.status == status
    assert (answer.body == b"") == (status == 403)


def test_keep_alive_and_pipelined_requests(fake: FakeOllama) -> None:
    with RawClient(fake.url) as client:
        one = b"GET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n"
        client.send(one + one)
        assert [client.read_response().status for _ in range(2)] == [200, 200]
        assert client.request("POST", "/api/chat", json=CHAT).complete
        assert fake.open_connections == 1


def test_http_1_0_stream_ends_by_close(fake: FakeOllama) -> None:
    with RawClient(fake.url) as client:
        body = json.dumps(CHAT).encode()
        client.send(b"POST /api/chat HTTP/1.0\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        answer = client.read_response()
    assert answer.header("transfer-encoding") is None
    assert answer.lines()[-1]["done"] is True


def test_chunked_request_body(fake: FakeOllama) -> None:
    with RawClient(fake.url) as client:
        client.send_request("POST", "/api/show", headers={"Transfer-Encoding": "chunked"})
        client.send(b'9\r\n{"model":\r\n7\r\n"tiny"}\r\n0\r\n\r\n')
        assert client.read_response().status == 200
    assert fake.requests[0].body == b'{"model":"tiny"}'


def test_each_token_is_one_chunk_with_its_pause(fake: FakeOllama) -> None:
    fake.tokens, fake.token_delay_s = 6, 0.03
    started = time.monotonic()
    answer = fetch(fake.url + "/api/chat", "POST", json=CHAT)
    assert time.monotonic() - started > 0.14
    assert len(answer.chunks) == 7
    assert answer.lines()[-1]["eval_count"] == 6


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_whole_answer_takes_as_long_as_its_stream(fake: FakeOllama, path: str) -> None:
    fake.tokens, fake.token_delay_s = 6, 0.03
    started = time.monotonic()
    assert fetch(fake.url + path, "POST", json=CHAT | {"stream": False}).status == 200
    assert time.monotonic() - started > 0.14


def test_length_of_one_answer(fake: FakeOllama) -> None:
    long = fetch(fake.url + "/api/chat", "POST", json=CHAT | {"options": {"fake_tokens": 20}})
    assert len(long.chunks) == 21
    cut = fetch(fake.url + "/api/chat", "POST", json=CHAT | {"options": {"num_predict": 2}})
    assert cut.lines()[-1]["done_reason"] == "length"


# --- observation -------------------------------------------------------------------------------


def test_requests_are_recorded_as_they_came(fake: FakeOllama) -> None:
    with RawClient(fake.url) as client:
        client.send_request("POST", "/api/show?a=%2F", b'{"model":"tiny"}', {"X-Odd": "1", "x-odd": "2"})
        client.read_response()
    request = fake.wait_for("/api/show")
    assert (request.method, request.path) == ("POST", "/api/show?a=%2F")
    assert [pair for pair in request.headers if pair[0].lower() == "x-odd"] == [
        ("X-Odd", "1"),
        ("x-odd", "2"),
    ]
    assert request.json() == {"model": "tiny"}
    assert (fake.count("/api/show"), fake.count("/api/*"), fake.count("/")) == (1, 1, 0)


@pytest.mark.parametrize("abort", [True, False], ids=["rst", "fin"])
@pytest.mark.parametrize("stalled", [True, False], ids=["stalled", "streaming"])
def test_a_hang_up_is_noticed_at_once(fake: FakeOllama, abort: bool, stalled: bool) -> None:
    if stalled:
        fake.fault("/api/chat", faults.StallBeforeHeaders())
    fake.tokens, fake.token_delay_s = 1000, 0.05
    client = RawClient(fake.url)
    client.send_request("POST", "/api/chat", json.dumps(CHAT).encode())
    request = fake.wait_for("/api/chat")
    if not stalled:
        client.read_head()
    client.abort() if abort else client.close()
    # A stall that nobody ends, and a stream of 50 s: only the peer's leaving is sooner.
    assert request.client_gone.wait(15)
    assert request.gone_after_s is not None
    fake.wait_idle()
    assert fake.max_in_flight == 1


def test_a_finished_request_was_not_left(fake: FakeOllama) -> None:
    fetch(fake.url + "/api/chat", "POST", json=CHAT)
    fake.wait_connections(0)
    request = fake.requests[0]
    assert request.ended.is_set()
    assert not request.client_gone.is_set()


# --- life --------------------------------------------------------------------------------------


def test_kill_refuses_and_restart_serves_on_the_same_port(fake: FakeOllama) -> None:
    port = fake.port
    fake.kill()
    with pytest.raises(ConnectionRefusedError):
        fetch(fake.url)
    fake.restart()
    assert fetch(fake.url).body == b"Ollama is running"
    assert fake.port == port


@pytest.mark.parametrize("reset", [True, False], ids=["rst", "fin"])
def test_kill_cuts_streams(fake: FakeOllama, reset: bool) -> None:
    fake.tokens, fake.token_delay_s = 1000, 0.01
    with RawClient(fake.url) as client:
        client.send_request("POST", "/api/chat", json.dumps(CHAT).encode())
        fake.wait_for("/api/chat")
        response = client.read_head()
        body = client.iter_body(response)
        next(body)
        fake.kill(reset)
        with pytest.raises(CutOff, match="reset" if reset else "closed"):
            list(body)
    assert not fake.requests[0].client_gone.is_set()


def test_pause_accepts_and_resume_answers(fake: FakeOllama) -> None:
    fake.pause()
    with RawClient(fake.url, timeout_s=0.2) as client:
        client.send_request("GET", "/api/version")
        with pytest.raises(TimeoutError):
            client.read_head()
        fake.resume()
        client.sock.settimeout(10)
        assert client.read_response().status == 200


def test_black_hole_lets_connects_hang(fake: FakeOllama) -> None:
    with RawClient(fake.url, timeout_s=0.2) as client:
        fake.black_hole()
        client.send_request("GET", "/api/version")
        with pytest.raises(TimeoutError):
            client.read_head()
    with pytest.raises(TimeoutError):
        RawClient(fake.url, timeout_s=0.3)
    fake.restart()
    assert fetch(fake.url).status == 200


def test_stop_right_after_a_connect_leaves_nothing(fakes: FakeFactory) -> None:
    for number in range(20):
        fake = fakes(f"f{number}")
        client = RawClient(fake.url)
        fake.stop()
        with pytest.raises(CutOff):
            client.read_head()
        client.close()


def test_stop_ends_stalls_within_a_second() -> None:
    with FakeOllama() as fake:
        fake.fault("*", faults.StallBeforeHeaders(threading.Event()))
        client = RawClient(fake.url)
        client.send_request("GET", "/api/version")
        fake.wait_for("/api/version")
        started = time.monotonic()
    assert time.monotonic() - started < 5
    with pytest.raises(CutOff):
        client.read_head()
    client.close()


# --- faults ------------------------------------------------------------------------------------


def faulty_chat(fake: FakeOllama, fault: Fault, stream: bool = True) -> RawResponse:
    fake.fault("/api/chat", fault)
    return fetch(fake.url + "/api/chat", "POST", json=CHAT | {"stream": stream})


def test_faults_end_after_their_times_and_match_by_prefix(fake: FakeOllama) -> None:
    rule = fake.fault("/api/*", faults.Status(418, b"short"), times=2)
    wanted = fake.fault("*", faults.Status(419), None, lambda request: request.method == "HEAD")
    statuses = [fetch(fake.url + "/api/version").status for _ in range(3)]
    assert statuses == [418, 418, 200]
    assert fetch(fake.url, "HEAD").status == 419
    assert (rule.played, wanted.played) == (2, 1)


def test_busy_in_all_dialects(fake: FakeOllama) -> None:
    golden = json.loads((GOLDEN / "generate_busy_503.json").read_text())
    fake.fault("*", faults.Refuse503Busy(), times=None)
    native = fetch(fake.url + "/api/generate", "POST", json={})
    assert (native.status, native.body.decode()) == (503, golden["response_body"])
    openai = fetch(fake.url + "/v1/chat/completions", "POST", json={}).json()
    anthropic = fetch(fake.url + "/v1/messages", "POST", json={}).json()
    assert openai["error"]["type"] == "api_error"
    assert anthropic["error"]["type"] == "overloaded_error"


@pytest.mark.parametrize("fault", [faults.EofBeforeHeaders(), faults.RstBeforeHeaders()])
def test_end_before_headers(fake: FakeOllama, fault: Fault) -> None:
    wanted = "reset" if isinstance(fault, faults.RstBeforeHeaders) else "closed"
    with pytest.raises(CutOff, match=wanted):
        faulty_chat(fake, fault)
    assert not fake.requests[0].client_gone.is_set()


def test_stall_ends_by_the_tests_event(fake: FakeOllama) -> None:
    go = threading.Event()
    fake.fault("/api/chat", faults.StallBeforeHeaders(go))
    with RawClient(fake.url) as client:
        client.send_request("POST", "/api/chat", json.dumps(CHAT).encode())
        fake.wait_for("/api/chat")
        assert fake.in_flight == 1
        go.set()
        assert client.read_response().complete


@pytest.mark.parametrize(
    ("ending", "was_reset"),
    [
        (faults.Rst, True),
        (faults.Eof, False),
        (faults.HalfChunk, False),
        (faults.Garbage, False),
        (faults.Stall(0.02), False),
    ],
    ids=["rst", "eof", "half-chunk", "garbage", "stall"],
)
def test_streams_cut_after_two_tokens(fake: FakeOllama, ending: Any, was_reset: bool) -> None:
    answer = faulty_chat(fake, StreamThen(2, ending))
    assert (answer.status, answer.ended, answer.reset) == (200, "cut", was_reset)
    assert len(answer.chunks) == 2


def test_stream_cut_before_its_first_token(fake: FakeOllama) -> None:
    answer = faulty_chat(fake, StreamThen(0, faults.Eof))
    assert (answer.status, answer.ended, answer.body) == (200, "cut", b"")


def test_whole_answer_cut_in_its_middle(fake: FakeOllama) -> None:
    answer = faulty_chat(fake, StreamThen(2, faults.Eof), stream=False)
    assert answer.ended == "cut"
    assert answer.body.startswith(b'{"model":"tiny"')


def test_error_record_and_clean_end(fake: FakeOllama) -> None:
    answer = faulty_chat(fake, StreamThen(1, faults.ErrorRecord("gone")))
    assert answer.complete
    assert answer.lines()[-1] == {"error": "gone"}
    answer = faulty_chat(fake, faults.CleanEndWithoutDone(2))
    assert answer.complete
    assert not answer.lines()[-1]["done"]


def test_errors_before_the_first_token(fake: FakeOllama) -> None:
    answer = faulty_chat(fake, faults.Error500("boom"))
    assert (answer.status, answer.json()) == (500, {"error": "boom"})
    answer = faulty_chat(fake, faults.ErrorInFirstChunk("boom"))
    assert (answer.status, answer.lines()) == (200, [{"error": "boom"}])
    assert answer.content_type == "application/x-ndjson"


def test_broken_lengths(fake: FakeOllama) -> None:
    short = faulty_chat(fake, faults.ShortContentLength())
    assert short.complete
    with pytest.raises(json.JSONDecodeError):
        short.lines()
    assert faulty_chat(fake, faults.LongContentLength()).ended == "cut"
    double = faulty_chat(fake, faults.DoubleContentLength())
    assert len([1 for name, _ in double.headers if name == "Content-Length"]) == 2


def test_broken_heads(fake: FakeOllama) -> None:
    huge = faulty_chat(fake, faults.HugeHeader(100_000))
    assert len(huge.header("x-huge") or "") == 100_000
    started = time.monotonic()
    assert faulty_chat(fake, faults.TrickledHeaders(0.002)).complete
    assert time.monotonic() - started > 0.1
    assert faulty_chat(fake, faults.GarbageAfter200()).ended == "cut"
    assert faulty_chat(fake, faults.SlowLoad(0.01)).complete
    moved = faulty_chat(fake, faults.Redirect(307, "http://localhost/x"))
    assert (moved.status, moved.header("location")) == (307, "http://localhost/x")


# --- the raw helpers ---------------------------------------------------------------------------


def test_raw_server_sends_exact_bytes() -> None:
    with raw_server(answering(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab")) as server:
        answer = fetch(server.url + "/x")
    assert (answer.body, answer.ended) == (b"ab", "cut")
    assert server.requests[0].startswith(b"GET /x HTTP/1.1\r\n")


def test_dead_address_refuses_and_tarpit_hangs() -> None:
    with dead_address() as (host, port), pytest.raises(ConnectionRefusedError):
        RawClient(f"http://{host}:{port}")
    with tarpit() as (host, port), pytest.raises(TimeoutError):
        RawClient(f"http://{host}:{port}", timeout_s=0.2)


def test_a_client_reads_past_trailers_and_tells_what_is_no_http() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n"
    with raw_server(answering(chunked + chunked)) as server, RawClient(server.url) as client:
        first = client.request("GET", "/")
        assert [first.body, client.read_response().body] == [b"ab", b"ab"]
    with raw_server(answering(b"SSH-2.0-x\r\n\r\n")) as server, pytest.raises(NotHttp, match="SSH"):
        fetch(server.url)


def test_requests_know_their_place_on_their_connection(fake: FakeOllama) -> None:
    with RawClient(fake.url) as client:
        client.request("GET", "/api/version", headers={"X-Own": "a"})
        client.request("GET", "/api/version")
    fetch(fake.url + "/api/version")
    assert [request.nth for request in fake.requests] == [1, 2, 1]
    assert fake.requests[0].all("x-own") == ["a"]


def test_tokens_on_a_used_connection_wait_for_no_ack(fake: FakeOllama) -> None:
    """Without TCP_NODELAY every answer but the first few of a connection would take 40 ms longer."""
    with RawClient(fake.url) as client:
        client.request("POST", "/api/chat", json=CHAT)
        (connection,) = fake._server.connections
        sock = connection.transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


def test_two_hundred_and_fifty_streams_at_once(fake: FakeOllama) -> None:
    fake.tokens, fake.token_delay_s = 10, 0.02
    go = threading.Event()
    fake.fault("/api/chat", faults.StallBeforeHeaders(go), times=None)
    clients = [RawClient(fake.url) for _ in range(250)]
    for client in clients:
        client.send_request("POST", "/api/chat", json.dumps(CHAT).encode())
    fake.wait_for("/api/chat", 250)
    go.set()
    answers = [client.read_response() for client in clients]
    for client in clients:
        client.close()
    assert {(len(answer.chunks), answer.ended) for answer in answers} == {(11, "complete")}
    assert fake.max_in_flight == 250


def test_a_big_upload_is_read_whole(fake: FakeOllama) -> None:
    content = "x" * (16 << 20)
    chat = CHAT | {"messages": [{"role": "user", "content": content}], "stream": False}
    assert fetch(fake.url + "/api/chat", "POST", json=chat).status == 200
    assert len(fake.requests[0].body) > len(content)
