"""Requests that change a store are read as Ollama reads them, with its texts in its order."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from proxy_app.dialects import store
from proxy_app.errors import RequestError

GOOD = "sha256:" + "a1" * 32
Reader = Callable[[bytes], Any]


def refused(read: Reader, asked: Any) -> tuple[int, str]:
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    with pytest.raises(RequestError) as caught:
        read(body)
    return caught.value.status, caught.value.message


@pytest.mark.parametrize(
    "read", [store.read_pull, store.read_push, store.read_delete, store.read_copy, store.read_create]
)
def test_a_missing_body_is_told(read: Reader) -> None:
    assert refused(read, b" \n") == (400, "missing request body")


REFUSED = [
    (store.read_pull, {}, "invalid model name"),
    (store.read_pull, {"name": "-bad"}, "invalid model name"),
    (store.read_pull, {"model": "a:cloud:local"}, 'use either :local or :cloud, not both: "a:cloud:local"'),
    (store.read_push, {}, "model is required"),
    (store.read_push, {"model": "", "name": ""}, "model is required"),
    (store.read_delete, {}, "model is required"),
    (store.read_delete, {"model": "-b"}, 'name "-b" is invalid'),
    (store.read_delete, {"model": "a:cloud:local"}, 'use either :local or :cloud, not both: "a:cloud:local"'),
    (store.read_copy, {"destination": "x"}, 'source "" is invalid'),
    (store.read_copy, {"source": "-", "destination": "-"}, 'source "-" is invalid'),
    (store.read_copy, {"source": "a", "destination": 'b"'}, 'destination "b\\"" is invalid'),
    (store.read_create, {"from": "tiny"}, "invalid model name"),
    (store.read_create, {"files": {"/etc/x": GOOD}}, "file path must be relative"),
    (store.read_create, {"files": {"a/../x": GOOD}}, "file path must be relative"),
    (store.read_create, {"files": {"x": ""}}, "invalid digest format"),
    (store.read_create, {"model": "m", "files": {"x": "md5:1"}}, "invalid digest format"),
    (store.read_create, {"model": "m", "adapters": {"x": ""}}, "invalid digest format"),
    (store.read_create, {"model": "m", "draft_quantize": "q4"}, "--draft-quantize requires a DRAFT model"),
    (
        store.read_create,
        {"model": "m", "files": {"x": 7}},
        "json: cannot unmarshal number into Go struct field CreateRequest.files of type string",
    ),
    (
        store.read_pull,
        {"model": 7},
        "json: cannot unmarshal number into Go struct field PullRequest.model of type string",
    ),
    (
        store.read_push,
        {"model": "x", "stream": "no"},
        "json: cannot unmarshal string into Go struct field PushRequest.stream of type bool",
    ),
]


@pytest.mark.parametrize(
    ("read", "asked", "text"), REFUSED, ids=[f"{row[0].__name__}-{n}" for n, row in enumerate(REFUSED)]
)
def test_what_ollama_refuses_is_refused_in_its_words(read: Reader, asked: Any, text: str) -> None:
    assert refused(read, asked) == (400, text)


def test_model_wins_over_name_and_keys_fold() -> None:
    assert store.read_pull(b'{"name":"old","MODEL":"new"}').given == "new"
    assert store.read_pull(b'{"name":"old","model":""}').given == "old"
    assert store.read_delete(b'{"Name":"Tiny"}').name.canonical == "registry.ollama.ai/library/tiny:latest"


@pytest.mark.parametrize(
    ("given", "stored"),
    [("a:cloud", "a:cloud"), ("a:8b:cloud", "a:8b-cloud"), ("a:8b-cloud", "a:8b-cloud"), ("a:local", "a:latest")],
)
def test_cloud_names_are_stored_in_their_legacy_form(given: str, stored: str) -> None:
    assert store.read_delete(json.dumps({"model": given}).encode()).name.shortest == stored


def test_create_knows_what_the_model_is_made_of() -> None:
    ask = store.read_create(
        json.dumps({"model": "m", "from": "base", "files": {"x": GOOD}, "adapters": {"y": GOOD}}).encode()
    )
    assert ask.base is not None
    assert (ask.base.shortest, ask.digests, ask.streams) == ("base:latest", (GOOD,), True)
    for elsewhere in ({"from": "base:cloud"}, {"from": "base", "remote_host": "https://x"}, {"from": "-"}, {}):
        assert store.read_create(json.dumps({"model": "m", **elsewhere}).encode()).base is None


def test_create_tells_what_no_list_of_models_can_allow() -> None:
    def ask(**more: str) -> store.CreateAsk:
        return store.read_create(json.dumps({"model": "m", **more}).encode())

    cloud = ask(**{"from": "big:cloud"})
    assert cloud.made_from is not None
    assert not cloud.is_foreign
    assert ask(**{"from": "base", "remote_host": "https://x"}).is_foreign
    assert ask(**{"from": "-"}).is_foreign
    assert not ask().is_foreign


@pytest.mark.parametrize(
    "body", [b'{"stream":false,"model":"x"}', b'{"model":"x","Stream" : false } tail', b'{"model":"x"}']
)
def test_a_request_can_be_made_to_ask_for_progress(body: bytes) -> None:
    asked = store.streaming(body)
    assert store.read_pull(asked).streams
    assert store.read_pull(asked).given == "x"
    assert json.loads(asked)["stream"] is True


@pytest.mark.parametrize("digest", [GOOD, GOOD.replace(":", "-"), GOOD.upper().replace("SHA", "sha")])
def test_digests_that_ollama_takes_are_taken(digest: str) -> None:
    store.check_digest(digest)


@pytest.mark.parametrize(
    "digest", ["", "sha256:", GOOD[:-1], GOOD + "0", "md5" + GOOD[6:], GOOD + "\n", "sha256/" + "a" * 64]
)
def test_digests_that_ollama_refuses_are_refused(digest: str) -> None:
    with pytest.raises(RequestError, match="invalid digest format"):
        store.check_digest(digest)
