"""Host and Origin rules: Ollama's own (server/routes.go:1776-1867, measured), and what the settings add."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from conformance.fakes.http import RawClient, RawResponse
from conformance.fakes.ollama import FakeOllama
from tests.conftest import FakeFactory
from tests.fakes.procs import Process
from tests.wire.shows import gateway

pytestmark = pytest.mark.leaky

OWN = {"CARAVAN_HOSTS": "llm.example, .corp.example", "CARAVAN_ORIGINS": "https://chat.example, https://*.corp.example"}
GOOD_ORIGINS = [
    "http://localhost",
    "https://localhost:3000",
    "http://127.0.0.1:5173",
    "https://127.0.0.1",
    "http://0.0.0.0:1",
    "app://obsidian.md",
    "file://",
    "tauri://localhost",
    "vscode-webview://abc",
    "vscode-file://vscode-app",
]
BAD_ORIGINS = [
    "null",
    "https://example.com",
    "chrome-extension://abc",
    "http://localhost.example.com",
    "http://10.0.0.1",
    "https://chat.example.com",
    "ftp://localhost",
]


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeOllama]:
    with FakeOllama("one", ["tiny"]) as started:
        yield started


@pytest.fixture(scope="module")
def product(fake: FakeOllama, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    with gateway([fake], tmp_path_factory.mktemp("host"), **OWN) as process:
        yield process


def ask(product: Process, method: str = "GET", path: str = "/api/version", **headers: str) -> RawResponse:
    with RawClient(product.url) as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.request(method, path, headers=named)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "localhost",
        "LOCALHOST:8080",
        "a.localhost",
        "printer.local",
        "foo.internal:80",
        "127.0.0.1",
        "127.8.8.8:1",
        "[::1]:11434",
        "0.0.0.0",
        "10.1.2.3",
        "192.168.0.5:99",
        "[fd00::1]",
        socket.gethostname(),
        "llm.example",
        "LLM.example:443",
        "a.b.corp.example",
    ],
)
def test_a_host_that_is_ours_is_served(product: Process, host: str) -> None:
    assert ask(product, Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "8.8.8.8",
        "[2001:4860::8888]",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "notlocalhost",
        "evil.llm.example",
        "xcorp.example",
        "corp.example.evil",
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/tags", "/no/such/path"])
def test_any_other_host_is_403_without_a_word(product: Process, host: str, path: str) -> None:
    answer = ask(product, path=path, Host=host)
    assert (answer.status, answer.body) == (403, b"")


def test_a_refused_host_reaches_no_backend(product: Process, fake: FakeOllama) -> None:
    before = fake.count("/api/chat")
    with RawClient(product.url) as client:
        answer = client.request("POST", "/api/chat", b'{"model":"tiny","messages":[]}', {"Host": "example.com"})
    assert (answer.status, fake.count("/api/chat")) == (403, before)


@pytest.mark.parametrize("origin", [*GOOD_ORIGINS, "https://chat.example", "https://a.corp.example"])
def test_an_allowed_page_may_read_the_answer(product: Process, origin: str) -> None:
    answer = ask(product, Origin=origin)
    assert (answer.status, answer.header("access-control-allow-origin")) == (200, origin)
    assert answer.header("vary") == "Origin"


@pytest.mark.parametrize("origin", BAD_ORIGINS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
def test_any_other_page_is_403_without_a_word(product: Process, origin: str, method: str) -> None:
    answer = ask(product, method, Origin=origin)
    assert (answer.status, answer.body) == (403, b"")
    assert answer.header("access-control-allow-origin") is None


def test_a_page_of_the_same_origin_is_no_stranger(product: Process) -> None:
    for scheme in ("http", "https"):
        assert ask(product, Host="llm.example", Origin=f"{scheme}://llm.example").status == 200
    assert ask(product, Host="llm.example", Origin="https://other.example").status == 403


def test_no_origin_means_no_cross_origin_headers(product: Process) -> None:
    answer = ask(product)
    assert answer.header("access-control-allow-origin") is None


def test_an_error_can_be_read_by_an_allowed_page(product: Process) -> None:
    answer = ask(product, path="/no/such/path", Origin="http://localhost:3000")
    assert (answer.status, answer.header("access-control-allow-origin")) == (404, "http://localhost:3000")


@pytest.mark.parametrize("path", ["/api/chat", "/api/tags", "/v1/chat/completions", "/no/such/path"])
def test_a_preflight_says_what_is_allowed(product: Process, path: str) -> None:
    answer = ask(product, "OPTIONS", path, Origin="http://localhost:3000", Access_Control_Request_Method="POST")
    assert (answer.status, answer.body) == (204, b"")
    assert answer.header("access-control-allow-origin") == "http://localhost:3000"
    assert answer.header("access-control-allow-methods") == "GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"
    assert answer.header("access-control-max-age") == "43200"
    allowed = {word.strip().lower() for word in (answer.header("access-control-allow-headers") or "").split(",")}
    assert {"authorization", "content-type", "user-agent", "accept", "x-requested-with", "openai-beta"} <= allowed
    assert any(word.startswith("x-stainless-") for word in allowed)


def test_backends_see_their_own_host_and_no_origin(product: Process, fake: FakeOllama) -> None:
    headers = {"Host": "llm.example", "Origin": "https://chat.example"}
    with RawClient(product.url) as client:
        for path, body in (("/api/show", b'{"model":"tiny"}'), ("/api/chat", b'{"model":"tiny","stream":false}')):
            answer = client.request("POST", path, body, headers)
            assert answer.status == 200, path
            assert answer.header("access-control-allow-origin") == "https://chat.example"
            request = fake.requests_for(path)[-1]
            assert request.header("host") == f"127.0.0.1:{fake.port}"
            assert request.header("origin") is None


def test_a_public_listener_checks_origins_but_no_hosts(
    fakes: FakeFactory, tmp_path_factory: pytest.TempPathFactory
) -> None:
    changes = {"HOST": "0.0.0.0", "CARAVAN_ANONYMOUS": "1"}
    with gateway([fakes()], tmp_path_factory.mktemp("public"), **changes) as public:
        assert ask(public, Host="example.com").status == 200
        assert ask(public, Host="example.com", Origin="https://other.example").status == 403
