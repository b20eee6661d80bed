"""Requests that are wrong in themselves: a 4xx in the route's dialect, nothing forwarded, no connection out of step."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.fakes.http import CutOff, RawClient, RawResponse
from tests.product import INFERENCE, NO_BREAKER, Stand, question, stand

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

GOLDEN = Path(__file__).parents[1] / "golden"
MAX_BODY = 100_000
TRANSCRIPTIONS = "/v1/audio/transcriptions"
# Answers of Ollama to requests that never reach a runner, and so not a backend either.
REFUSALS = (
    "chat_404",
    "chat_no_model_400",
    "embed_404",
    "embeddings_404",
    "embeddings_no_model_400",
    "generate_404",
    "generate_empty_body_400",
    "generate_invalid_name_400",
    "generate_no_model_404",
    "messages_404",
    "messages_no_model_400",
    "v1_audio_transcriptions_not_multipart_400",
    "v1_chat_404",
    "v1_chat_empty_body_400",
    "v1_chat_no_model_400",
    "v1_embeddings_404",
    "v1_responses_404",
)
# What each begins with is followed by a good request.
NOT_WHAT_THEY_SEEM = {
    "no Host": "GET /api/version HTTP/1.1",
    "a Host with a blank": "GET /api/version HTTP/1.1\r\nHost: local host",
    "another protocol": "GET ftp://localhost/api/version HTTP/1.1\r\nHost: localhost",
    "a coding beside chunked": "POST /api/chat HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked",
}
BROKEN_BODIES = {
    "not json": b"{model: tiny}",
    "cut json": b'{"model": "tiny", "messages": [',
    "an array": b'[{"model": "tiny"}]',
    "a number": b"17",
    "a text": b'"tiny"',
    "a model that is a number": b'{"model": 5}',
    "a model that is an object": b'{"model": {"name": "tiny"}}',
    "a model that is a list": b'{"model": ["tiny"]}',
    "a model that is true": b'{"model": true}',
    "two models": b'{"model": "tiny", "model": "tiny"}',
    "two models, one in capitals": b'{"model": "only-a", "x": 1, "MODEL": "only-b"}',
    "two models, one with an escape": b'{"model": "only-a", "\\u006dodel": "only-b"}',
    "two models, the same text": b'{"model":"tiny","messages":[],"model":"tiny"}',
    "no utf-8": b'{"model": "tiny", "x": \xff}',
    "only blanks": b" \r\n\t ",
    "nothing": b"",
}
INVALID_NAMES = ("-x", "a//b", "a b", "tiny:", "x/../y", "a" * 81, "tiny@sha256:" + "0" * 64, "\u00e4")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("bad-input")
    with stand(folder, CARAVAN_MAX_BODY=str(MAX_BODY), **NO_BREAKER) as made:
        yield made


@pytest.fixture
def site(shared: Stand) -> Iterator[Stand]:
    shared.tidy()
    yield shared
    assert not inference_at(shared), "something was forwarded"


def inference_at(site: Stand) -> list[Any]:
    return [r for fake in site.fakes for r in fake.requests if r.method == "POST" and r.target != "/api/show"]


def assert_dialect(path: str, answer: RawResponse) -> str:
    """The answer is an error in the route's own form; returns its text."""
    assert answer.complete
    assert answer.content_type in ("application/json; charset=utf-8", "application/json")
    value = answer.json()
    if path.startswith("/v1/messages"):
        assert value["type"] == "error"
        assert re.fullmatch(r"req_[0-9a-f]{24}", value["request_id"])
        assert set(value["error"]) == {"type", "message"}
        return str(value["error"]["message"])
    if path.startswith("/v1/"):
        assert set(value["error"]) == {"message", "type", "param", "code"}
        return str(value["error"]["message"])
    assert set(value) == {"error"}
    return str(value["error"])


def assert_usable(client: RawClient) -> None:
    """The connection serves another request, or the server has closed it without a byte too much."""
    try:
        answer = client.request("GET", "/api/version")
    except (CutOff, BrokenPipeError):
        return
    assert answer.status == 200
    assert "version" in answer.json()


@pytest.mark.parametrize("name", REFUSALS)
def test_a_recorded_refusal_is_repeated_word_by_word(site: Stand, name: str) -> None:
    case = json.loads((GOLDEN / f"{name}.json").read_text())
    with site.client() as client:
        answer = client.request(case["method"], case["path"], case["request_body"].encode(), case["request_headers"])
        assert_usable(client)
    assert answer.status == case["status"]
    assert steady(answer.json()) == steady(json.loads(case["response_body"]))
    assert_dialect(case["path"], answer)


def steady(value: dict[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key != "request_id"}


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("name", BROKEN_BODIES)
def test_a_broken_body_is_refused(site: Stand, path: str, name: str) -> None:
    with site.client() as client:
        answer = client.request("POST", path, BROKEN_BODIES[name], {"Content-Type": "application/json"})
        assert_usable(client)
    assert answer.status == 400
    assert assert_dialect(path, answer)


@pytest.mark.parametrize("path", INFERENCE)
def test_a_body_of_null_names_no_model(site: Stand, path: str) -> None:
    # Go decodes null into an empty request.
    with site.client() as client:
        answer = client.request("POST", path, b"null", {"Content-Type": "application/json"})
    assert_unnamed(path, answer)


@pytest.mark.parametrize("path", INFERENCE)
def test_an_empty_body_gets_ollamas_text(site: Stand, path: str) -> None:
    with site.client() as client:
        answer = client.request("POST", path, b"", {"Content-Type": "application/json"})
    text = "EOF" if path.startswith("/v1/") else "missing request body"
    assert (answer.status, assert_dialect(path, answer)) == (400, text)


@pytest.mark.parametrize("path", INFERENCE)
@pytest.mark.parametrize("model", [None, "", "  "], ids=["absent", "empty", "blank"])
def test_a_missing_model_gets_ollamas_text(site: Stand, path: str, model: str | None) -> None:
    asked = question(path)
    if model is None:
        del asked["model"]
    else:
        asked["model"] = model
    answer = site.post(path, asked)
    if model == "  ":
        assert answer.status in (400, 404)
        assert assert_dialect(path, answer)
    else:
        assert_unnamed(path, answer)


def assert_unnamed(path: str, answer: RawResponse) -> None:
    """Ollama's answer where no model is named; its routes differ."""
    if path in ("/api/generate", "/api/embed", "/v1/completions", "/v1/embeddings"):
        assert (answer.status, assert_dialect(path, answer)) == (404, "model '' not found")
    else:
        assert (answer.status, assert_dialect(path, answer)) == (400, "model is required")


@pytest.mark.parametrize("path", INFERENCE)
def test_an_unknown_model_gets_ollamas_text(site: Stand, path: str) -> None:
    answer = site.post(path, question(path, "Nope:7b"))
    pull = "embed" in path
    text = 'model "Nope:7b" not found, try pulling it first' if pull else "model 'Nope:7b' not found"
    assert (answer.status, assert_dialect(path, answer)) == (404, text)


@pytest.mark.parametrize("path", INFERENCE)
def test_an_invalid_name_gets_ollamas_text(site: Stand, path: str) -> None:
    answer = site.post(path, question(path, "-x"))
    assert (answer.status, assert_dialect(path, answer)) == (400, "invalid model name")


@pytest.mark.parametrize("name", INVALID_NAMES)
def test_every_invalid_name_is_refused(site: Stand, name: str) -> None:
    answer = site.post("/api/chat", question("/api/chat", name))
    assert (answer.status, answer.json()) == (400, {"error": "invalid model name"})


# --- forms ---------------------------------------------------------------------------------------


def multipart(*parts: tuple[str, bytes], boundary: str = "XX") -> bytes:
    pieces = [f'--{boundary}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\n'.encode() + v for n, v in parts]
    return b"\r\n".join([*pieces, f"--{boundary}--\r\n".encode()])


BROKEN_FORMS = {
    "no boundary": ("multipart/form-data", multipart(("model", b"tiny"), ("file", b"x"))),
    "another boundary": ("multipart/form-data; boundary=YY", multipart(("model", b"tiny"), ("file", b"x"))),
    "no end": ("multipart/form-data; boundary=XX", multipart(("model", b"tiny"), ("file", b"x"))[:-8]),
    "two models": ("multipart/form-data; boundary=XX", multipart(("model", b"only-a"), ("model", b"only-b"))),
    "no model": ("multipart/form-data; boundary=XX", multipart(("file", b"x"))),
    "json": ("application/json", b'{"model": "tiny"}'),
    "nothing": ("multipart/form-data; boundary=XX", b""),
}


@pytest.mark.parametrize("name", BROKEN_FORMS)
def test_a_broken_form_is_refused(site: Stand, name: str) -> None:
    content_type, body = BROKEN_FORMS[name]
    with site.client() as client:
        answer = client.request("POST", TRANSCRIPTIONS, body, {"Content-Type": content_type})
        assert_usable(client)
    assert answer.status == 400
    assert assert_dialect(TRANSCRIPTIONS, answer)


# --- bodies that are cut or too large ------------------------------------------------------------


@pytest.mark.parametrize("path", INFERENCE)
def test_a_body_shorter_than_announced_is_refused(site: Stand, path: str) -> None:
    body = json.dumps(question(path)).encode()
    with site.client() as client:
        client.send_request("POST", path, body, {"Content-Length": str(len(body) + 10)})
        client.sock.shutdown(socket.SHUT_WR)
        answer = client.read_response()
        assert client.closed_by_peer(10)
    assert answer.status == 400
    assert assert_dialect(path, answer)


def test_a_chunked_body_without_its_end_is_refused(site: Stand) -> None:
    body = json.dumps(question("/api/chat")).encode()
    with site.client() as client:
        client.send_request("POST", "/api/chat", b"%x\r\n%b\r\n" % (len(body), body), {"Transfer-Encoding": "chunked"})
        client.sock.shutdown(socket.SHUT_WR)
        answer = client.read_response()
    assert answer.status == 400
    assert answer.complete


def test_a_client_that_leaves_within_its_body_leaves_nothing_behind(site: Stand) -> None:
    with site.client() as client:
        client.send_request("POST", "/api/chat", b'{"model"', {"Content-Length": "1000"})
        client.abort()
    assert site.process.get("/api/version").status == 200


@pytest.mark.parametrize("chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"-5\r\n{}\r\n0\r\n\r\n", b"2\r\n{}xx\r\n0\r\n\r\n"])
def test_broken_chunks_are_refused(site: Stand, chunks: bytes) -> None:
    with site.client() as client:
        client.send_request("POST", "/api/chat", chunks, {"Transfer-Encoding": "chunked"})
        answer = client.read_response()
        assert 400 <= answer.status < 500
        assert client.closed_by_peer(10)


def test_a_length_and_chunks_together_are_refused(site: Stand) -> None:
    with site.client() as client:
        both = {"Content-Length": "3", "Transfer-Encoding": "chunked"}
        client.send_request("POST", "/api/chat", b"2\r\n{}\r\n0\r\n\r\n", both)
        answer = client.read_response()
        assert 400 <= answer.status < 500
        assert client.closed_by_peer(10)


@pytest.mark.parametrize("path", [*INFERENCE, TRANSCRIPTIONS])
def test_a_body_announced_too_large_is_refused_before_it_comes(site: Stand, path: str) -> None:
    with site.client() as client:
        client.send_request("POST", path, b'{"model":', {"Content-Length": str(MAX_BODY + 1)})
        answer = client.read_response()
    assert answer.status == 413
    assert assert_dialect(path, answer)


def test_a_body_that_is_sent_though_it_is_too_large_is_refused(site: Stand) -> None:
    asked = question("/api/chat", padding="x" * (3 * MAX_BODY))
    with site.client() as client:
        answer = client.request("POST", "/api/chat", json=asked)
        assert answer.status == 413
        assert_usable(client)


def test_chunks_that_grow_too_large_are_refused(site: Stand) -> None:
    with site.client() as client:
        client.send_request("POST", "/api/chat", b"", {"Transfer-Encoding": "chunked"})
        answer = flood(client)
    assert answer.status == 413
    assert assert_dialect("/api/chat", answer)


def flood(client: RawClient) -> RawResponse:
    """Send chunk after chunk until the server has answered or closed, then read its answer."""
    piece = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    try:
        for _ in range(2 * MAX_BODY // 0x4000):
            client.send(piece)
    except ConnectionError:
        pass
    return client.read_response()


@pytest.mark.parametrize("size", [MAX_BODY, MAX_BODY + 1])
def test_the_limit_is_exact(shared: Stand, size: int) -> None:
    shared.tidy()
    body = json.dumps(question("/api/chat")).encode()
    body += b" " * (size - len(body))
    with shared.client() as client:
        answer = client.request("POST", "/api/chat", body)
    assert answer.status == (200 if size == MAX_BODY else 413)
    assert len(inference_at(shared)) == (1 if size == MAX_BODY else 0)


# --- what Ollama takes, although it looks wrong --------------------------------------------------

TOLERATED = {
    "bytes after the object": b'{"model":"tiny","messages":[]} and more',
    "a key in capitals": b'{"MODEL":"tiny","messages":[]}',
    "a key with a long s and blanks": b' \r\n\t{ "model" : "tiny" , "me\xc5\xbfsages" : [] } \n',
    "other models further in": b'{"messages":[{"content":"{\\"model\\":\\"x\\"}","model":1}],"model":"tiny"}',
    "an escaped name": b'{"mode\\u006c":"t\\u0069ny","messages":[]}',
}


@pytest.mark.parametrize("name", TOLERATED)
@pytest.mark.parametrize("content_type", ["application/json", "application/x-www-form-urlencoded", "text/plain", ""])
def test_what_ollama_tolerates_is_forwarded_as_it_came(shared: Stand, name: str, content_type: str) -> None:
    shared.tidy()
    headers = {"Content-Type": content_type} if content_type else {}
    with shared.client() as client:
        answer = client.request("POST", "/api/chat", TOLERATED[name], headers)
    assert answer.status == 200, answer.body
    assert [request.body for request in inference_at(shared)] == [TOLERATED[name]]
    assert inference_at(shared)[0].header("content-type") == (content_type or None)


@pytest.mark.parametrize("head", NOT_WHAT_THEY_SEEM.values(), ids=NOT_WHAT_THEY_SEEM)
def test_who_is_not_what_he_seems_is_heard_no_further(site: Stand, head: str) -> None:
    """What follows on the connection may be another's request to a reader that took the first one otherwise."""
    with site.client() as client:
        client.send(head.encode() + b"\r\n\r\nGET /api/version HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = client.read_response()
        assert (answer.status, answer.header("connection")) == (400, "close")
        assert client.closed_by_peer(10)
