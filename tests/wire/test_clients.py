"""The official clients, unmodified, and curl: what works with Ollama works through Caravan."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import anthropic
import ollama
import openai
import pytest

from conformance.fakes import faults
from conformance.fakes.ollama import FakeModel
from tests.product import NO_BREAKER, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

HELLO = [{"role": "user", "content": "hi"}]
SAID = "Hello from a."


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    embedder = FakeModel("embedder", capabilities=("embedding",))
    with stand(tmp_path_factory.mktemp("clients"), models=["tiny", embedder], **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


# --- ollama --------------------------------------------------------------------------------------


@pytest.fixture
def native(site: Stand) -> Iterator[ollama.Client]:
    with ollama.Client(host=site.url) as client:
        yield client


def test_ollama_lists_the_models_of_all_backends(native: ollama.Client) -> None:
    names = {model.model for model in native.list().models}
    assert names == {"tiny:latest", "embedder:latest", "only-a:latest", "only-b:latest"}


def test_ollama_shows_a_model(native: ollama.Client) -> None:
    shown = native.show("tiny")
    assert shown.capabilities == ["completion"]
    assert shown.details is not None
    assert shown.details.format == "gguf"


def test_ollama_chats(native: ollama.Client) -> None:
    answer = native.chat("tiny", HELLO)
    assert (answer.message.content, answer.done, answer.done_reason) == (SAID, True, "stop")


def test_ollama_chats_in_a_stream(native: ollama.Client) -> None:
    parts = list(native.chat("tiny", HELLO, stream=True))
    assert "".join(part.message.content or "" for part in parts) == SAID
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_ollama_generates(native: ollama.Client) -> None:
    assert native.generate("tiny", "hi").response == SAID
    assert "".join(part.response for part in native.generate("tiny", "hi", stream=True)) == SAID


def test_ollama_embeds(native: ollama.Client) -> None:
    assert len(native.embed("embedder", ["one", "two"]).embeddings) == 2
    assert len(native.embeddings("embedder", "one").embedding) == 4


def test_ollama_hears_of_an_unknown_model(native: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="model 'nope' not found") as caught:
        native.chat("nope", HELLO)
    assert caught.value.status_code == 404


async def chat_with_async_client(url: str) -> str:
    async with ollama.AsyncClient(host=url) as client:
        parts = [part.message.content async for part in await client.chat("tiny", HELLO, stream=True)]
    return "".join(part or "" for part in parts)


def test_ollamas_asynchronous_client_chats(site: Stand) -> None:
    assert asyncio.run(chat_with_async_client(site.url)) == SAID


# --- openai --------------------------------------------------------------------------------------


@pytest.fixture
def compat(site: Stand) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.url}/v1", api_key="ollama", max_retries=0) as client:
        yield client


def test_openai_lists_models(compat: openai.OpenAI) -> None:
    assert {model.id for model in compat.models.list()} >= {"tiny:latest", "only-a:latest", "only-b:latest"}
    assert compat.models.retrieve("tiny").id == "tiny"


def test_openai_chats(compat: openai.OpenAI) -> None:
    answer = compat.chat.completions.create(model="tiny", messages=HELLO)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (SAID, "stop")


def test_openai_chats_in_a_stream(compat: openai.OpenAI) -> None:
    parts = list(
        compat.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == SAID
    assert parts[-1].usage is not None


def test_openai_completes(compat: openai.OpenAI) -> None:
    assert compat.completions.create(model="tiny", prompt="hi").choices[0].text == SAID


def test_openai_embeds(compat: openai.OpenAI) -> None:
    # The client asks for base64 and decodes it.
    answer = compat.embeddings.create(model="embedder", input=["one", "two"])
    assert [len(item.embedding) for item in answer.data] == [4, 4]


def test_openai_responds(compat: openai.OpenAI) -> None:
    assert compat.responses.create(model="tiny", input="hi").output_text == SAID
    kinds = [event.type for event in compat.responses.create(model="tiny", input="hi", stream=True)]
    assert kinds[-1] == "response.completed"


def test_openai_transcribes(site: Stand, compat: openai.OpenAI) -> None:
    answer = compat.audio.transcriptions.create(model="only-b", file=("a.wav", b"RIFF\r\n\0\xff"))
    assert answer.text == "Hello from b."
    assert site.counts("/v1/audio/transcriptions") == [0, 1]


def test_openai_hears_of_an_unknown_model(compat: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model 'nope' not found"):
        compat.chat.completions.create(model="nope", messages=HELLO)


# --- anthropic -----------------------------------------------------------------------------------


@pytest.fixture
def messages(site: Stand) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=site.url, api_key="ollama", max_retries=0) as client:
        yield client


def test_anthropic_sends_a_message(messages: anthropic.Anthropic) -> None:
    answer = messages.messages.create(model="tiny", max_tokens=100, messages=HELLO)
    assert (answer.content[0].text, answer.stop_reason) == (SAID, "end_turn")


def test_anthropic_streams_a_message(messages: anthropic.Anthropic) -> None:
    with messages.messages.stream(model="tiny", max_tokens=100, messages=HELLO) as stream:
        assert "".join(stream.text_stream) == SAID
        assert stream.get_final_message().stop_reason == "end_turn"


def test_anthropic_hears_of_an_unknown_model(messages: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="model 'nope' not found"):
        messages.messages.create(model="nope", max_tokens=100, messages=HELLO)


# --- curl ----------------------------------------------------------------------------------------

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="no curl here")


def curl(site: Stand, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["curl", "--silent", "--show-error", "--max-time", "20", *arguments, site.url + path]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@needs_curl
def test_curl_chats_with_ollamas_own_example(site: Stand) -> None:
    # As in Ollama's documentation: no content type is given, so curl says it is a form.
    done = curl(site, "/api/chat", "-N", "-d", json.dumps(question("/api/chat")))
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert (done.returncode, records[-1]["done"]) == (0, True)
    assert "".join(record["message"]["content"] for record in records) == SAID


@needs_curl
def test_curl_shows_tokens_while_the_backend_is_still_silent(site: Stand) -> None:
    go_on = threading.Event()
    site.fakes[0].fault("/api/chat", faults.StreamThen(1, faults.Stall(go_on)))
    command = ["curl", "-sN", "--max-time", "20", "-d", json.dumps(question("/api/chat")), f"{site.url}/api/chat"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert json.loads(child.stdout.readline())["message"]["content"] == "Hello"
        assert not go_on.is_set()
        go_on.set()
        assert set(json.loads(child.stdout.readline())) == {"error"}
    assert child.returncode == 0


@needs_curl
def test_curl_fails_on_an_answer_that_was_cut(site: Stand) -> None:
    body = b'{"embeddings":[' + b"1," * 1_000_000
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    for fake in site.fakes:
        fake.fault("/api/embed", Cut(head + faults.chunk(body)))
    done = curl(site, "/api/embed", "-d", json.dumps(question("/api/embed")))
    # 18: partial file; 56: failure in receiving.
    assert done.returncode in (18, 56), done.stderr


class Cut(faults.Fault):
    """These bytes, then EOF."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    async def play(self, exchange: faults.Exchange) -> None:
        await exchange.send(self._data)
        exchange.close()


@needs_curl
def test_curl_posts_a_big_body_after_asking_to_go_on(site: Stand, tmp_path: Path) -> None:
    asked = question("/api/chat", stream=False, padding="x" * 2_000_000)
    file = tmp_path / "body.json"
    file.write_text(json.dumps(asked))
    done = curl(site, "/api/chat", "-d", f"@{file}", "-H", "Expect: 100-continue")
    assert (done.returncode, json.loads(done.stdout)["done"]) == (0, True)
    assert site.fakes[0].requests_for("/api/chat")[0].body == file.read_bytes()


@needs_curl
def test_curl_over_http_1_0_gets_a_stream_that_ends_with_the_connection(site: Stand) -> None:
    done = curl(site, "/api/chat", "--http1.0", "-d", json.dumps(question("/api/chat")))
    assert (done.returncode, json.loads(done.stdout.splitlines()[-1])["done"]) == (0, True)
