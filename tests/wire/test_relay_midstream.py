"""A backend that dies in the middle of an answer: the client is told in its own dialect, and never sees a clean end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import ollama
import openai
import pytest

from conformance.fakes import faults
from conformance.fakes.faults import StreamThen
from conformance.fakes.http import RawResponse
from tests.product import NO_BREAKER, STREAMING, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

DEATHS = (faults.Rst, faults.Eof, faults.HalfChunk, faults.Garbage)
NATIVE = ("/api/chat", "/api/generate")
# Enough that an RST cannot overtake them: the fake pauses before it dies.
TOKENS = 3
# The longest that it takes until a backend is let go. Seconds; only a failure takes as long.
GONE_S = 15.0


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with stand(tmp_path_factory.mktemp("midstream"), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    for fake in shared.fakes:
        fake.tokens, fake.token_delay_s = 20, 0.01
    return shared


def events(answer: RawResponse) -> list[tuple[str, Any]]:
    """The events of an SSE body as (event name, data)."""
    found = []
    for block in answer.body.decode().split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if ": " in line)
        if "data" in fields:
            found.append((fields.get("event", ""), read_data(fields["data"])))
    return found


def read_data(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
@pytest.mark.parametrize("path", NATIVE)
def test_a_native_stream_ends_in_an_error_line(site: Stand, path: str, then: type[faults.Ending]) -> None:
    site.fakes[0].fault(path, StreamThen(TOKENS, then))
    answer = site.post(path)
    assert (answer.status, answer.ended) == (200, "complete")
    *before, last = answer.body.splitlines()
    assert set(json.loads(last)) == {"error"}
    assert [json.loads(line)["done"] for line in before[:TOKENS]] == [False] * TOKENS
    # Nothing of what is not the last record claims to be the end, and it was not started anew elsewhere.
    assert b'"done":true' not in answer.body
    assert site.counts(path) == [1, 0]


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_an_openai_stream_ends_in_an_error_object(site: Stand, path: str, then: type[faults.Ending]) -> None:
    site.fakes[0].fault(path, StreamThen(TOKENS, then))
    answer = site.post(path, question(path, stream=True))
    assert (answer.status, answer.ended) == (200, "complete")
    error = events(answer)[-1][1]["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "api_error"
    assert b"[DONE]" not in answer.body
    assert site.counts(path) == [1, 0]


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
def test_a_responses_stream_ends_in_its_error_event(site: Stand, then: type[faults.Ending]) -> None:
    site.fakes[0].fault("/v1/responses", StreamThen(TOKENS, then))
    answer = site.post("/v1/responses", question("/v1/responses", stream=True))
    assert (answer.status, answer.ended) == (200, "complete")
    name, data = events(answer)[-1]
    assert (name, data["type"]) == ("error", "error")
    assert data["message"]
    assert b"response.completed" not in answer.body


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
def test_a_messages_stream_ends_in_its_error_event(site: Stand, then: type[faults.Ending]) -> None:
    site.fakes[0].fault("/v1/messages", StreamThen(TOKENS, then))
    answer = site.post("/v1/messages", question("/v1/messages", stream=True))
    assert (answer.status, answer.ended) == (200, "complete")
    name, data = events(answer)[-1]
    assert (name, data["type"]) == ("error", "error")
    assert set(data["error"]) == {"type", "message"}
    assert b"message_stop" not in answer.body


@pytest.mark.parametrize("path", STREAMING)
def test_a_killed_backend_ends_a_stream_in_an_error_record(site: Stand, path: str) -> None:
    site.fakes[0].fault(path, StreamThen(TOKENS, faults.Stall()))
    with site.client() as client:
        client.send_request("POST", path, json.dumps(question(path, stream=True)).encode())
        head = client.read_head()
        pieces = client.iter_body(head)
        begun = next(pieces)
        site.fakes[0].kill()
        rest = b"".join(pieces)
    site.fakes[0].restart()
    assert begun
    last = rest.rstrip().splitlines()[-1].removeprefix(b"data: ")
    assert "error" in json.loads(last)


@pytest.mark.parametrize("path", STREAMING)
def test_a_record_that_was_cut_is_closed_before_the_error_record(site: Stand, path: str) -> None:
    site.fakes[0].fault(path, StreamThen(TOKENS, HalfRecord()))
    answer = site.post(path, question(path, stream=True))
    assert answer.complete
    if path in NATIVE:
        assert set(json.loads(answer.body.splitlines()[-1])) == {"error"}
    else:
        assert "error" in events(answer)[-1][1]


class HalfRecord(faults.Ending):
    """A whole chunk with half a record, in a packet of its own where there is time; then EOF."""

    async def play(self, exchange: faults.Exchange, answer: faults.Answer) -> None:
        await exchange.wait(0.02)
        await exchange.send(faults.chunk(b'{"model":"tiny","crea'))
        exchange.close()


@pytest.mark.parametrize("path", NATIVE)
def test_an_error_record_of_the_backend_itself_is_passed_on_once(site: Stand, path: str) -> None:
    answer = site.post(path, question(path, messages=[{"role": "user", "content": "ERRMID"}], prompt="ERRMID"))
    assert answer.complete
    assert sum("error" in record for record in answer.lines()) == 1
    assert "error" in answer.lines()[-1]


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    times = {"CARAVAN_IDLE_TIMEOUT": "1", "CARAVAN_FIRST_BYTE_TIMEOUT": "1"}
    with stand(tmp_path_factory.mktemp("impatient"), **times) as made:
        # On the one that is asked; for a model that has to be loaded the wait is longer.
        made.fakes[0].load_model("tiny")
        made.process.wait_until(lambda: made.process.get("/api/ps").json()["models"] != [], "tiny is loaded")
        yield made


def test_a_stream_that_falls_silent_ends_in_an_error_record(impatient: Stand) -> None:
    impatient.fakes[0].fault("/api/chat", StreamThen(2, faults.Stall))
    answer = impatient.post("/api/chat")
    assert answer.complete
    assert set(answer.lines()[-1]) == {"error"}
    assert impatient.fakes[0].wait_for("/api/chat").client_gone.wait(GONE_S)


def test_a_backend_that_never_begins_is_a_504_and_asked_alone(impatient: Stand) -> None:
    impatient.tidy()
    impatient.fakes[0].fault("/api/chat", faults.StallBeforeHeaders())
    answer = impatient.post("/api/chat")
    assert answer.status == 504
    assert set(answer.json()) == {"error"}
    assert impatient.counts("/api/chat") == [1, 0]
    assert impatient.fakes[0].requests_for("/api/chat")[0].client_gone.wait(GONE_S)


# --- what the official clients make of it --------------------------------------------------------


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
def test_the_ollama_client_raises(site: Stand, then: type[faults.Ending]) -> None:
    site.fakes[0].fault("/api/chat", StreamThen(TOKENS, then))
    got: list[ollama.ChatResponse] = []
    with ollama.Client(host=site.url) as client, pytest.raises((ollama.ResponseError, json.JSONDecodeError)):
        got.extend(client.chat("tiny", question("/api/chat")["messages"], stream=True))
    assert len(got) >= TOKENS
    assert not any(part.done for part in got)


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
def test_the_openai_client_raises(site: Stand, then: type[faults.Ending]) -> None:
    site.fakes[0].fault("/v1/chat/completions", StreamThen(TOKENS, then))
    got: list[object] = []
    messages: Any = question("/api/chat")["messages"]
    with (
        openai.OpenAI(base_url=f"{site.url}/v1", api_key="unused", max_retries=0) as client,
        pytest.raises(openai.APIError),
    ):
        got.extend(client.chat.completions.create(model="tiny", messages=messages, stream=True))
    assert len(got) >= TOKENS


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
def test_the_openai_client_raises_on_responses(site: Stand, then: type[faults.Ending]) -> None:
    site.fakes[0].fault("/v1/responses", StreamThen(TOKENS, then))
    with (
        openai.OpenAI(base_url=f"{site.url}/v1", api_key="unused", max_retries=0) as client,
        pytest.raises(openai.APIError),
    ):
        for _ in client.responses.create(model="tiny", input="hi", stream=True):
            pass


@pytest.mark.parametrize("then", DEATHS, ids=lambda ending: ending.__name__)
def test_the_anthropic_client_raises(site: Stand, then: type[faults.Ending]) -> None:
    site.fakes[0].fault("/v1/messages", StreamThen(TOKENS, then))
    with (
        anthropic.Anthropic(base_url=site.url, api_key="unused", max_retries=0) as client,
        pytest.raises(anthropic.APIError),
        client.messages.stream(model="tiny", max_tokens=100, messages=[{"role": "user", "content": "hi"}]) as stream,
    ):
        stream.get_final_message()


@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions"])
def test_a_stream_with_a_length_loses_it_so_that_its_cut_can_be_told(site: Stand, path: str) -> None:
    site.fakes[0].fault(path, CutAtLength())
    answer = site.post(path, question(path, stream=True))
    assert answer.ended == "complete"
    assert answer.body.startswith(RECORDS[path])
    assert b'"error"' in answer.body.removeprefix(RECORDS[path])


RECORDS = {"/api/chat": b'{"done":false}\n', "/v1/chat/completions": b'data: {"choices":[]}\n\n'}


class CutAtLength(faults.Fault):
    """A stream that announces its length, and ends 30 bytes before it, after its first record was taken."""

    async def play(self, exchange: faults.Exchange) -> None:
        kind = "application/x-ndjson" if exchange.request.target == "/api/chat" else "text/event-stream"
        record = RECORDS[exchange.request.target]
        head = [("Content-Type", kind), ("Content-Length", str(len(record) + 30))]
        await exchange.send(faults.head_bytes(200, head) + record)
        await exchange.wait(0.1)
        exchange.close()
