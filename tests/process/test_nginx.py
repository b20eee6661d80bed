"""deploy/nginx.conf in a real nginx, between a client and Caravan's own server."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from conformance.fakes.faults import Stall, StallBeforeHeaders, StreamThen
from conformance.fakes.http import RawClient, encode_json, fetch
from conformance.fakes.ollama import FakeOllama
from tests.fakes.procs import ROOT, Process, free_port, gunicorn
from tests.process.checkout import checkout_view

MODEL = "llama3.2:1b"
MIB = 1 << 20
# Until the backend has heard that nobody waits any more, in seconds.
GONE_S = 15.0
# Debian puts it where only root's PATH looks.
NGINX = shutil.which("nginx", path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/usr/local/sbin")

pytestmark = [
    pytest.mark.skipif(NGINX is None, reason="nginx is not installed (Debian: apt install nginx)"),
    pytest.mark.timeout(150),
    # Caravan is started once for all, and its kept connections to the fake outlive a test.
    pytest.mark.leaky,
]


def for_test(conf: str, folder: Path, listen: int, upstream: int) -> str:
    """The file as shipped; only the two ports and the places it writes to are others."""
    replacements = {
        "listen 80;": f"listen 127.0.0.1:{listen};",
        "server 127.0.0.1:8080;": f"server 127.0.0.1:{upstream};",
        "/run/nginx.pid": f"{folder}/nginx.pid",
        "/var/log/nginx/": f"{folder}/",
        "/var/lib/nginx/": f"{folder}/",
    }
    for old, new in replacements.items():
        assert old in conf, f"deploy/nginx.conf no longer says {old}"
        conf = conf.replace(old, new)
    return conf


@contextmanager
def world_readable_folder() -> Iterator[Path]:
    """Started by root, nginx's workers are another user, whom pytest's private folders bar."""
    folder = Path(tempfile.mkdtemp(prefix="caravan-nginx-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def ollama() -> Iterator[FakeOllama]:
    with FakeOllama(models=[MODEL]) as fake:
        yield fake


@pytest.fixture(scope="module")
def caravan(ollama: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """`gunicorn wsgi:app` on a loopback port; without a Redis, and with a refresher of its own."""
    folder = tmp_path_factory.mktemp("caravan")
    server = gunicorn(
        {"OLLAMA_BACKENDS": f"one={ollama.url}", "WEB_CONCURRENCY": "1"},
        folder,
    )
    server.cwd = checkout_view(folder / "app")
    with server:
        yield server.wait_ready()


@pytest.fixture(scope="module")
def gateway(caravan: Process) -> Iterator[str]:
    """The URL of nginx."""
    with world_readable_folder() as folder:
        port = free_port()
        shipped = (ROOT / "deploy" / "nginx.conf").read_text()
        conf = folder / "nginx.conf"
        assert caravan.port is not None
        conf.write_text(for_test(shipped, folder, port, caravan.port))
        assert NGINX is not None
        command = [NGINX, "-e", str(folder / "error.log"), "-c", str(conf), "-g", "daemon off;"]
        with Process(command, {}, folder, port) as server:
            yield server.wait_ready("/api/version").url


@pytest.fixture(autouse=True)
def fresh_record(ollama: FakeOllama) -> None:
    ollama.wait_idle()
    ollama.forget_requests()


@pytest.fixture
def client() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def chat(content: str, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}]} | fields


def test_the_first_token_comes_before_the_second_is_there(
    gateway: str, ollama: FakeOllama, client: requests.Session
) -> None:
    """And the client that goes then ends the generation."""
    ollama.fault("/api/chat", StreamThen(1, Stall()))
    with client.post(f"{gateway}/api/chat", json=chat("hi"), stream=True, timeout=10) as answer:
        assert answer.status_code == 200
        assert json.loads(next(answer.iter_lines(chunk_size=None)))["done"] is False
    assert ollama.wait_for("/api/chat").client_gone.wait(GONE_S), "the backend went on writing"


def test_a_whole_stream_comes_through(gateway: str, ollama: FakeOllama, client: requests.Session) -> None:
    body = chat("hi", options={"fake_tokens": 200})
    with client.post(f"{gateway}/api/chat", json=body, stream=True, timeout=30) as answer:
        records = [json.loads(line) for line in answer.iter_lines()]
    assert [record["done"] for record in records] == [False] * 200 + [True]


def test_a_body_of_20_mb_arrives_whole(gateway: str, ollama: FakeOllama, client: requests.Session) -> None:
    body = json.dumps(chat("x" * 20 * MIB, stream=False)).encode()
    answer = client.post(f"{gateway}/api/chat", data=body, timeout=60)
    assert answer.status_code == 200
    assert ollama.wait_for("/api/chat").body == body


def test_a_client_that_leaves_before_the_first_token_ends_the_generation(gateway: str, ollama: FakeOllama) -> None:
    ollama.fault("/api/chat", StallBeforeHeaders())
    with RawClient(gateway) as client:
        client.send_request("POST", "/api/chat", encode_json(chat("hi")), {"Content-Type": "application/json"})
        asked = ollama.wait_for("/api/chat")
    assert asked.client_gone.wait(GONE_S), "the backend went on writing"


def test_caravans_own_refusal_of_a_too_big_body_passes(gateway: str, client: requests.Session) -> None:
    body = b'{"model":"' + MODEL.encode() + b'","prompt":"' + b"x" * (65 * MIB) + b'"}'
    answer = client.post(f"{gateway}/api/generate", data=body, timeout=60)
    assert answer.status_code == 413
    assert "error" in answer.json()


def test_store_operations_through_a_proxy_never_reach_a_backend(
    gateway: str, ollama: FakeOllama, client: requests.Session
) -> None:
    """Without keys nobody can tell who is behind nginx."""
    answer = client.delete(f"{gateway}/api/delete", json={"model": MODEL}, timeout=10)
    assert 400 <= answer.status_code < 500
    assert ollama.count("/api/delete") == 0


def test_double_slashes_reach_caravan_as_sent(gateway: str) -> None:
    """Ollama redirects them; nginx must not tidy the path on the way (as `requests` would)."""
    answer = fetch(f"{gateway}//api/tags")
    assert (answer.status, answer.header("location")) == (307, "/api/tags")
