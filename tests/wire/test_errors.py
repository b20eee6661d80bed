"""Errors that Caravan itself raises: in the form that the asker reads, and silent about what stands behind it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from flask import Flask

from conformance.fakes import faults
from conformance.fakes.http import RawResponse, fetch
from conformance.fakes.ollama import FakeOllama
from proxy_app.errors import BadRequest
from proxy_app.web.respond import register_errors
from tests.product import NO_BREAKER, Stand, backends_of, question, served

# The fakes live as long as the module, and with them the connections that Caravan keeps to them.
pytestmark = pytest.mark.leaky

# Names that stand in no error: they are the operator's.
NAMES = ("gpu-canary-one", "gpu-canary-two")
TOKEN = "canary-token-of-the-backends"
FORMS = {"text/plain": "text/plain", "text/html": "text/html; charset=utf-8"}
ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    folder = tmp_path_factory.mktemp("errors")
    with canaries(folder) as made:
        yield made


@pytest.fixture(scope="module")
def shared_impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    """One that soon gives up waiting, for clients and backends: only for what is about that, a busy machine is slow."""
    folder = tmp_path_factory.mktemp("impatient")
    waits = {"CARAVAN_CLIENT_TIMEOUT": "0.3", "CARAVAN_FIRST_BYTE_TIMEOUT": "1", "CARAVAN_LOAD_TIMEOUT": "1"}
    with canaries(folder, **waits) as made:
        yield made


@contextmanager
def canaries(folder: Path, **changes: str) -> Iterator[Stand]:
    """A product whose backends have names and a token that nobody is to hear of."""
    with (
        FakeOllama(NAMES[0], ["tiny", f"only-{NAMES[0]}"]) as one,
        FakeOllama(NAMES[1], ["tiny", f"only-{NAMES[1]}"]) as two,
    ):
        backends = backends_of((one, two), auth_token=TOKEN)
        own = {"OLLAMA_BACKENDS": backends, "CARAVAN_MAX_BODY": "4096", **changes}
        with served((one, two), folder, **own, **NO_BREAKER) as made:
            yield made


@pytest.fixture
def site(shared: Stand) -> Stand:
    shared.tidy()
    return shared


@pytest.fixture
def impatient(shared_impatient: Stand) -> Stand:
    shared_impatient.tidy()
    return shared_impatient


@pytest.fixture
def asked_site(request: pytest.FixtureRequest, name: str) -> Stand:
    """Where an error of this name comes about."""
    found: Stand = request.getfixturevalue("impatient" if RAISED[name].by_time else "site")
    return found


Ask = Callable[[Stand, str, Mapping[str, str]], RawResponse]


@dataclass(frozen=True)
class Raised:
    """An error of Caravan's own, and how it comes about on an inference route; `by_time`: where a wait ends."""

    status: int
    ask: Ask
    by_time: bool = False


def plain(asked: Callable[[str], Any]) -> Ask:
    return lambda site, path, headers: site.post(path, asked(path), headers=headers)


def faulty(fault: faults.Fault) -> Ask:
    """Both backends do the same to a good request."""

    def ask(site: Stand, path: str, headers: Mapping[str, str]) -> RawResponse:
        for fake in site.fakes:
            fake.load_model("tiny")
            fake.fault(path, fault, times=None)
        return site.post(path, headers=headers)

    return ask


def cut_body(site: Stand, path: str, headers: Mapping[str, str]) -> RawResponse:
    with site.client() as client:
        client.send_request("POST", path, b'{"model":', {"Content-Length": "100", **headers})
        client.sock.shutdown(socket.SHUT_WR)
        return client.read_response()


def silent_body(site: Stand, path: str, headers: Mapping[str, str]) -> RawResponse:
    with site.client() as client:
        client.send_request("POST", path, b'{"model":', {"Content-Length": "100", **headers})
        return client.read_response()


def loop(site: Stand, path: str, headers: Mapping[str, str]) -> RawResponse:
    """A request with the Via that Caravan itself writes."""
    site.post("/api/chat")
    via = site.fakes[0].requests_for("/api/chat")[0].header("via")
    assert via
    return site.post(path, headers={"Via": via, **headers})


RAISED = {
    "400 no JSON": Raised(400, lambda site, path, headers: fetch(site.url + path, "POST", b"{no", headers)),
    "400 a cut body": Raised(400, cut_body),
    "404 an unknown model": Raised(404, plain(lambda path: question(path, "nope"))),
    "408 a silent body": Raised(408, silent_body, by_time=True),
    "413 a long body": Raised(413, plain(lambda path: question(path, padding="x" * 5000))),
    "502 lost connections": Raised(502, faulty(faults.EofBeforeHeaders())),
    "502 garbage": Raised(502, faulty(faults.GarbageAfter200())),
    "502 refused by the backends": Raised(502, faulty(faults.Status(401, f'{{"error":"{TOKEN}"}}'))),
    "502 sent elsewhere": Raised(502, faulty(faults.Redirect(location="http://10.1.2.3:11434/x"))),
    "508 a loop": Raised(508, loop),
}
# It takes a second each time: on some routes only.
SLOW = Raised(504, faulty(faults.StallBeforeHeaders()), by_time=True)
ROUTES = ("/api/chat", "/api/embed", "/v1/chat/completions", "/v1/responses", "/v1/messages")
ON_ROUTES = [(path, name) for path in ROUTES for name in RAISED]


def message_of(path: str, answer: RawResponse) -> str:
    """The message of an error in the form of a route's dialect."""
    value = answer.json()
    if path.startswith("/api/"):
        assert set(value) == {"error"}
        return str(value["error"])
    if path == "/v1/messages":
        assert (set(value), value["type"]) == ({"type", "error", "request_id"}, "error")
        assert set(value["error"]) == {"type", "message"}
    else:
        assert set(value) == {"error"}
        assert set(value["error"]) == {"message", "type", "param", "code"}
    return str(value["error"]["message"])


def assert_tells_nothing(site: Stand, answer: RawResponse) -> None:
    """No address, port, name, path or stack of what stands behind, in head or body."""
    told = answer.head + answer.body
    secrets = [*NAMES, TOKEN, "127.0.0.1", "localhost:", "10.1.2.3", "Traceback", "proxy_app", "urllib3", ".py"]
    secrets += [str(fake.port) for fake in site.fakes]
    secrets += [str(Path(site.process.env["DATA_DIR"])), str(Path(__file__).parents[2])]
    assert not [secret for secret in secrets if secret.encode() in told], told


def assert_signed(answer: RawResponse) -> None:
    assert len(answer.all("x-request-id")) == 1
    assert ID.fullmatch(answer.header("x-request-id") or "")


@pytest.mark.parametrize(("path", "name"), ON_ROUTES)
def test_an_error_is_in_the_dialect_of_its_route_and_tells_nothing(asked_site: Stand, path: str, name: str) -> None:
    answer = RAISED[name].ask(asked_site, path, {})
    assert (answer.status, answer.ended) == (RAISED[name].status, "complete")
    assert (answer.content_type or "").startswith("application/json")
    assert message_of(path, answer)
    assert answer.header("content-length") == str(len(answer.body))
    assert_signed(answer)
    assert_tells_nothing(asked_site, answer)


@pytest.mark.parametrize(
    "accept", ["*/*", "application/json", "text/event-stream", "application/x-ndjson, */*", "nonsense"]
)
@pytest.mark.parametrize("path", ROUTES)
def test_clients_of_an_api_keep_their_dialect_whatever_they_accept(site: Stand, path: str, accept: str) -> None:
    for name in ("404 an unknown model", "502 lost connections"):
        answer = RAISED[name].ask(site, path, {"Accept": accept})
        assert answer.status == RAISED[name].status
        assert message_of(path, answer)


@pytest.mark.parametrize("accept", ["text/html;q=0.1, application/json", "application/json, text/plain, */*"])
def test_who_likes_json_as_well_gets_it(site: Stand, accept: str) -> None:
    """The second one is what axios and others send."""
    answer = RAISED["404 an unknown model"].ask(site, "/v1/chat/completions", {"Accept": accept})
    assert message_of("/v1/chat/completions", answer)


@pytest.mark.parametrize("accept", FORMS)
@pytest.mark.parametrize("name", RAISED)
def test_a_person_gets_text(asked_site: Stand, name: str, accept: str) -> None:
    answer = RAISED[name].ask(asked_site, "/v1/chat/completions", {"Accept": accept})
    assert (answer.status, answer.ended) == (RAISED[name].status, "complete")
    assert answer.content_type == FORMS[accept]
    assert not answer.body.lstrip().startswith(b"{")
    assert_signed(answer)
    assert_tells_nothing(asked_site, answer)


def test_a_browser_gets_a_page(site: Stand) -> None:
    browser = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
    answer = RAISED["404 an unknown model"].ask(site, "/api/chat", {"Accept": browser, "X-Request-Id": "of-a-person"})
    assert answer.content_type == "text/html; charset=utf-8"
    page = answer.body.decode()
    assert "404" in page
    assert "not found" in page
    assert "of-a-person" in page
    assert "script" not in page
    assert (answer.header("content-security-policy") or "").startswith("default-src 'none'")
    assert answer.header("x-content-type-options") == "nosniff"
    assert answer.header("cache-control") == "no-store"


class Tags(HTMLParser):
    """The elements of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg/onload=alert(1)>', "{{7*7}}"]
)
@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions", "/v1/messages"])
def test_what_a_client_sent_is_escaped_in_a_page(site: Stand, path: str, name: str) -> None:
    answer = site.post(path, question(path, name), headers={"Accept": "text/html"})
    assert 400 <= answer.status < 500
    assert not Tags(answer.body.decode()).found & {"script", "img", "svg"}


@pytest.mark.parametrize("name", ["<script>", 'a"b\\c', "line\nbreak\x00", "ünï☃", "x" * 300])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_what_a_client_sent_is_one_text_of_json(site: Stand, path: str, name: str) -> None:
    answer = site.post(path, question(path, name))
    assert 400 <= answer.status < 500
    assert message_of(path, answer)


def test_a_timeout_tells_nothing_either(impatient: Stand) -> None:
    answer = SLOW.ask(impatient, "/v1/messages", {})
    assert answer.status == 504
    assert message_of("/v1/messages", answer)
    assert_tells_nothing(impatient, answer)


# --- other routes --------------------------------------------------------------------------------

OTHERS: dict[str, tuple[str, str, bytes | None, int]] = {
    "a show of nobody": ("POST", "/api/show", b'{"model":"nope"}', 404),
    "a show without a name": ("POST", "/api/show", b"{}", 400),
    "a long show": ("POST", "/api/show", b"x" * (257 << 10), 413),
    "a model of nobody": ("GET", "/v1/models/nope", None, 404),
    "an account": ("POST", "/api/me", b"{}", 403),
    "a signing out": ("POST", "/api/signout", b"{}", 403),
    "a key": ("DELETE", "/api/user/keys/abc", None, 403),
    "a digest that is none": ("HEAD", "/api/blobs/nonsense", None, 400),
    "an unknown path": ("GET", "/nowhere", None, 404),
    "a wrong method": ("PUT", "/api/chat", b"{}", 405),
    "a host that is not allowed": ("GET", "/api/tags", None, 403),
}


@pytest.mark.parametrize("name", OTHERS)
def test_errors_of_all_routes_are_signed_and_tell_nothing(site: Stand, name: str) -> None:
    method, path, body, status = OTHERS[name]
    headers = {"Host": "attacker.example"} if "host" in name else {}
    answer = fetch(site.url + path, method, body, headers)
    assert answer.status == status
    assert_signed(answer)
    assert_tells_nothing(site, answer)


@pytest.mark.parametrize("headers", [{}, {"X-Forwarded-For": "1.2.3.4"}, {"Via": "1.1 elsewhere"}], ids=str)
def test_who_may_not_change_what_backends_hold_is_told_so(site: Stand, headers: dict[str, str]) -> None:
    answer = fetch(f"{site.url}/api/delete", "DELETE", b'{"model":"nope"}', headers)
    assert answer.status == (403 if headers else 404)
    assert set(answer.json()) == {"error"}
    assert_signed(answer)
    assert_tells_nothing(site, answer)


def test_a_given_id_is_the_one_of_the_error_and_of_the_log(site: Stand) -> None:
    answer = RAISED["502 lost connections"].ask(site, "/v1/messages", {"X-Request-Id": "my-own-id.7"})
    assert answer.header("x-request-id") == "my-own-id.7"
    assert answer.json()["request_id"] == "req_my-own-id.7"
    assert site.logged("my-own-id.7")["outcome"] == "all_backends_failed"


def test_a_model_whose_backends_are_down_is_a_503_that_tells_nothing(site: Stand) -> None:
    a = site.fakes[0]
    a.kill()
    try:
        site.wait_unseen(a)
        for path in ROUTES:
            answer = site.post(path, question(path, f"only-{NAMES[0]}"))
            assert answer.status == 503
            assert answer.header("retry-after")
            # The name is the client's own word; the rest is nobody's business.
            assert_tells_nothing(site, RawResponse(0, [], answer.body.replace(f"only-{NAMES[0]}".encode(), b"")))
    finally:
        a.restart()


# --- a bug ---------------------------------------------------------------------------------------


@pytest.fixture
def broken() -> Flask:
    """The product's error handlers around a view with a bug."""
    app = Flask("broken", root_path=str(Path(__file__).parents[2] / "proxy_app"), template_folder="web/templates")
    register_errors(app)

    def bug() -> str:
        raise KeyError(f"{TOKEN} at http://127.0.0.1:11434")

    def said() -> str:
        raise BadRequest('<script>alert(1)</script>"><img src=x>')

    app.add_url_rule("/said", "said", said)
    for number, path in enumerate(("/api/chat", "/v1/chat/completions", "/v1/messages")):
        app.add_url_rule(path, f"bug{number}", bug)
    return app


def test_every_message_is_escaped_in_a_page(broken: Flask) -> None:
    answer = broken.test_client().get("/said", headers={"Accept": "text/html"})
    assert answer.status_code == 400
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in answer.text
    assert not Tags(answer.text).found & {"script", "img"}


@pytest.mark.parametrize("accept", ["*/*", "text/plain", "text/html"])
@pytest.mark.parametrize("path", ["/api/chat", "/v1/chat/completions", "/v1/messages"])
def test_a_bug_is_a_500_that_tells_nothing_outside_of_the_log(
    broken: Flask, caplog: pytest.LogCaptureFixture, path: str, accept: str
) -> None:
    answer = broken.test_client().get(path, headers={"Accept": accept})
    assert answer.status_code == 500
    assert "its log says why" in answer.text
    assert not [secret for secret in (TOKEN, "KeyError", "Traceback", "127.0.0.1") if secret in answer.text]
    if accept == "*/*":
        raw = RawResponse(500, [], answer.data)
        assert message_of(path, raw)
    assert TOKEN in caplog.text
    assert "Traceback" in caplog.text
